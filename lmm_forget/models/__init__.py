"""The model families: load them, name their parts, speak their chat format."""
