"""What Hydra writes about a sweep (its grid, what a sweeper found), kept apart until the sweep is accepted.

Hydra writes multirun.yaml before anything of the sweep has been checked. It is given a folder of its own for that; what
lies there goes to the sweep's folder once the jobs are known to run, and never where they are refused.
"""

from __future__ import annotations

from pathlib import Path

from lmm_forget.files import write_atomic

_ACCEPTED = ".accepted"
"""File in Hydra's folder that holds the path of the sweep's."""


def accept(scratch: Path, folder: Path) -> None:
    """The sweep in `folder` will run: from now on what Hydra writes in `scratch` belongs there."""
    (scratch / _ACCEPTED).write_text(str(folder.absolute()), encoding="utf-8")
    carry(scratch)


def carry(scratch: Path) -> None:
    """Write what lies in `scratch` to the folder of the sweep, if it was accepted and is there."""
    try:
        folder = Path((scratch / _ACCEPTED).read_text(encoding="utf-8"))
    except OSError:
        return
    if not folder.is_dir():
        return
    for path in sorted(scratch.rglob("*")):
        if path.is_file() and path.name != _ACCEPTED:
            content, target = path.read_bytes(), folder / path.relative_to(scratch)
            if not target.exists() or target.read_bytes() != content:
                write_atomic(target, content)
