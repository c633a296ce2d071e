"""Looking at a task's data before it is used, and fetching what a data set only links to."""
