"""Which Slurm job a job folder belongs to (slurm.json), and which folders a submission is for (its list)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lmm_forget.errors import LaunchError
from lmm_forget.files import write_atomic

SLURM_RECORD_FILE = "slurm.json"


@dataclass(frozen=True)
class SlurmJobRecord:
    """A job folder's place in Slurm.

    `submission` names the list it was submitted with, before Slurm gave it an `id`; `output` is what the batch script
    printed; `ended` is the last state Slurm had for it.
    """

    submission: str
    id: str | None = None
    output: str | None = None
    ended: str | None = None

    @classmethod
    def read(cls, job_dir: Path) -> SlurmJobRecord | None:
        """The record in a job's folder, if there is one that can be read."""
        try:
            return cls(**json.loads((job_dir / SLURM_RECORD_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, job_dir: Path) -> None:
        """Write it to a job's folder."""
        write_atomic(job_dir / SLURM_RECORD_FILE, json.dumps(asdict(self), sort_keys=True) + "\n")


def record_slurm_state(job_dir: Path, state: str) -> None:
    """Note how Slurm's part ended, for the time when Slurm has forgotten it."""
    slurm_record = SlurmJobRecord.read(job_dir)
    if slurm_record is not None and slurm_record.ended != state:
        replace(slurm_record, ended=state).write(job_dir)


@dataclass(frozen=True)
class SlurmSubmission:
    """What the tasks of one sbatch call read: where to work, and one job file for each index of the array."""

    name: str
    cwd: str
    jobs: Sequence[str]
    max_requeues: int
    signal: int

    @classmethod
    def read(cls, path: Path) -> SlurmSubmission:
        """From its list. Raises LaunchError if it cannot be read."""
        try:
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**fields)
        except (OSError, ValueError, TypeError) as error:
            raise LaunchError(f"cannot read the submission {path}: {error}") from error

    def write(self, path: Path) -> None:
        """Before it is submitted."""
        write_atomic(path, json.dumps({**asdict(self), "jobs": list(self.jobs)}, indent=1) + "\n")

    def get_job_file(self, array_index: str | None) -> Path:
        """The job.yaml of an array's index (None: a job without an array)."""
        return Path(self.jobs[int(array_index or 0)])
