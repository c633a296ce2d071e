"""Writes a stage's model as an ordinary Hugging Face folder, from the base model and the deltas in the store."""
