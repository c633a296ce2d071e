"""A job on several devices: its workers, started once through torch's elastic launcher, and how they end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_workers(path: Path, config: Mapping[str, Any]) -> int:
    """Start one worker per device of this machine for job.yaml at `path` and wait for them; returns the exit code."""
    raise NotImplementedError
