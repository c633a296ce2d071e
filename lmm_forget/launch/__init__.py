"""Jobs as processes of their own: prepared, started side by side, watched, stopped, reported."""
