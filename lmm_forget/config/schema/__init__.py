"""The configuration as classes: what each setting means, may be, and changes."""
