"""What Hydra writes about a sweep (its grid, a sweeper's results), kept apart until the sweep is accepted.

Hydra writes multirun.yaml before anything of the sweep has been checked. It is given a folder of its own for that; what
lies there goes to the sweep's folder once the jobs are known to run, and never where they are refused.
"""

from __future__ import annotations

from pathlib import Path

from lmm_forget.files import write_atomic

_ACCEPTED_MARKER = ".accepted"
"""File in Hydra's folder that holds the path of the sweep's."""


def accept_sweep(scratch_dir: Path, sweep_dir: Path) -> None:
    """The sweep in `sweep_dir` will run: from now on what Hydra writes in `scratch_dir` belongs there."""
    (scratch_dir / _ACCEPTED_MARKER).write_text(str(sweep_dir.absolute()), encoding="utf-8")
    copy_to_accepted_sweep(scratch_dir)


def copy_to_accepted_sweep(scratch_dir: Path) -> None:
    """Copy what lies in `scratch_dir` to the folder of the sweep, if it was accepted and is there."""
    try:
        sweep_dir = Path((scratch_dir / _ACCEPTED_MARKER).read_text(encoding="utf-8"))
    except OSError:
        return
    if not sweep_dir.is_dir():
        return
    for path in sorted(scratch_dir.rglob("*")):
        if path.is_file() and path.name != _ACCEPTED_MARKER:
            content, target = path.read_bytes(), sweep_dir / path.relative_to(scratch_dir)
            if not target.exists() or target.read_bytes() != content:
                write_atomic(target, content)
