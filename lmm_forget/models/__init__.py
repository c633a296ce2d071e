"""Model families: loading, the component map, and the chat format."""
