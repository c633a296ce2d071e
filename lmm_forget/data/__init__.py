"""Inspect a task's data before it is used, and download images to which a data set only links."""
