"""What Slurm knows of jobs now: `squeue`, never the accounting, which many clusters do not have."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from lmm_forget.errors import LaunchError

ENDED = frozenset(
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
PATIENCE = 60.0
"""Seconds that one question to Slurm may take."""


class Unreachable(LaunchError):
    """Slurm does not answer: nothing is known about any job, which is not the same as a job being gone."""


@dataclass(frozen=True)
class Seen:
    """A job in Slurm's eyes: its state, and why it waits."""

    id: str
    state: str
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether it will not go on by itself."""
        return self.state in ENDED

    @property
    def running(self) -> bool:
        """Whether its processes may live."""
        return not self.ended and self.state not in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD")


def available() -> bool:
    """Whether this machine can talk to a Slurm at all."""
    return shutil.which("squeue") is not None


def look(ids: Iterable[str]) -> dict[str, Seen]:
    """The jobs of `ids` (`12`, or `12_3` in an array) that Slurm still knows; ended ones it forgets after minutes.

    Raises Unreachable where it does not answer.
    """
    wanted = set(ids)
    if not wanted:
        return {}
    bases = sorted({one.partition("_")[0] for one in wanted})
    line = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(bases)}"]
    done = _ask([*line, "--format=%i|%T|%r"])
    if done.returncode:
        if "Invalid job id" in done.stderr:
            return {}
        raise Unreachable(f"squeue failed: {_last(done.stderr)}")
    found = {}
    for row in done.stdout.splitlines():
        name, _, rest = row.strip().partition("|")
        state, _, reason = rest.partition("|")
        if name in wanted:
            found[name] = Seen(name, state.strip(), "" if reason.strip() == "None" else reason.strip())
    return found


def fields(id: str) -> dict[str, str]:
    """`scontrol show job`: JobState, PreemptTime, Restarts, …; empty where Slurm does not know the job any more."""
    done = _ask(["scontrol", "--oneliner", "show", "job", id])
    return dict(re.findall(r"(\S+?)=(\S*)", done.stdout)) if done.returncode == 0 else {}


def requeue(id: str) -> str | None:
    """Put a running job back into the queue; returns what Slurm has against it."""
    done = _ask(["scontrol", "requeue", id])
    return None if done.returncode == 0 else _last(done.stderr or done.stdout)


def _ask(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except FileNotFoundError as error:
        raise Unreachable(f"{command[0]} was not found; is this a machine of the cluster?") from error
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"{command[0]} did not answer in {PATIENCE:.0f} s") from error


def _last(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
