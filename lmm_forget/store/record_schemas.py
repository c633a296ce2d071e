"""Versions of the files that a job leaves in its folder: experiment/ and evaluation/ write them, report/ reads them."""

from __future__ import annotations

RESULTS_SCHEMA = 2
"""Version of results.json (docs/results_schema.md); raised when a field is renamed or changes its meaning."""
ANSWERS_SCHEMA = b"2"
"""Version of answers.parquet, in its metadata; raised when a column is renamed or changes its meaning."""
