"""What Slurm knows of jobs now: `squeue`, never the accounting, which many clusters do not have."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from lmm_forget.errors import LaunchError

ENDED_STATES = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
"""States that a job does not leave again; in every other one it is waiting, running or about to."""
SLURM_TIMEOUT_SECONDS = 60.0
"""Seconds that one Slurm command may take."""


class SlurmUnreachable(LaunchError):
    """Slurm does not answer: nothing is known about any job, which is not the same as a job being gone."""


@dataclass(frozen=True)
class SlurmJobInfo:
    """What Slurm knows of a job: its state, and why it waits."""

    id: str
    state: str
    reason: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether it will not go on by itself."""
        return self.state in ENDED_STATES

    @property
    def is_running(self) -> bool:
        """Whether its processes may live."""
        return not self.has_ended and self.state not in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD")


def is_slurm_available() -> bool:
    """Whether this machine can talk to a Slurm at all."""
    return shutil.which("squeue") is not None


def query_jobs(job_ids: Iterable[str]) -> dict[str, SlurmJobInfo]:
    """The jobs of `job_ids` (`12`, or `12_3` in an array) that Slurm still knows; ended ones it forgets after minutes.

    Raises SlurmUnreachable where it does not answer.
    """
    requested_ids = set(job_ids)
    if not requested_ids:
        return {}
    base_ids = sorted({job_id.partition("_")[0] for job_id in requested_ids})
    line = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(base_ids)}"]
    completed = _run_slurm_command([*line, "--format=%i|%T|%r"])
    if completed.returncode:
        if "Invalid job id" in completed.stderr:
            return {}
        raise SlurmUnreachable(f"squeue failed: {_get_last_line(completed.stderr)}")
    jobs = {}
    for row in completed.stdout.splitlines():
        name, _, state_and_reason = row.strip().partition("|")
        state, _, reason = state_and_reason.partition("|")
        if name in requested_ids:
            jobs[name] = SlurmJobInfo(name, state.strip(), "" if reason.strip() == "None" else reason.strip())
    return jobs


def read_job_fields(job_id: str) -> dict[str, str]:
    """`scontrol show job`: JobState, PreemptTime, Restarts, …; empty where Slurm does not know the job any more."""
    completed = _run_slurm_command(["scontrol", "--oneliner", "show", "job", job_id])
    return dict(re.findall(r"(\S+?)=(\S*)", completed.stdout)) if completed.returncode == 0 else {}


def requeue_job(job_id: str) -> str | None:
    """Put a running job back into the queue; returns the error message where Slurm refuses."""
    completed = _run_slurm_command(["scontrol", "requeue", job_id])
    return None if completed.returncode == 0 else _get_last_line(completed.stderr or completed.stdout)


def _run_slurm_command(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SLURM_TIMEOUT_SECONDS, check=False)
    except FileNotFoundError as error:
        raise SlurmUnreachable(f"{command[0]} was not found; is this a machine of the cluster?") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnreachable(f"{command[0]} did not answer in {SLURM_TIMEOUT_SECONDS:.0f} s") from error


def _get_last_line(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
