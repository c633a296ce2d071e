"""A stage model as an ordinary Hugging Face folder, built from the base and the deltas in the store."""
