"""Which parameters move (`selection`) and how they move (one file per method)."""
