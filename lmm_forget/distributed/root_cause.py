"""Why a job's processes ended: which of them is the cause, and what it died of, in one line."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmm_forget.distributed.heartbeat import read_job_status

SAME_EVENT_SECONDS = 5.0
"""Seconds in which processes that died of the same event are seen to be gone; one that the agent had to kill is gone
half a minute after the first."""
STOPPED_EXIT_CODES = (143, 130, -signal.SIGTERM, -signal.SIGUSR2)
"""Exit codes of processes that ended because they were asked to."""
FATAL_SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
"""Signals that are a cause. SIGABRT is not among them: it is how a rank ends whose peer is gone."""
RESUME_HINT = "; the same command goes on from the last saved state"


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended: its exit code (negative: a signal's number), and when that was seen (seconds)."""

    rank: int
    exit_code: int
    seen_time: float


@dataclass(frozen=True)
class RankFailure:
    """What a rank wrote about its failure, and when (seconds)."""

    rank: int
    time: float
    text: str


def find_root_cause(
    job_dir: Path, worker_exits: Sequence[WorkerExit], status: Mapping[str, Any]
) -> tuple[WorkerExit, str]:
    """Which of the workers that ended badly is the cause, and what it died of, in words that follow its name.

    A worker that was killed writes nothing, and its peers write about the lost connection: it comes first. Of those
    that wrote something, the one whose file is the oldest: its connections closed after it was written. `status` is
    the content of status.json; what rank 0 wrote there is returned as it is.
    """
    first_seen = worker_exits[0].seen_time
    simultaneous_exits = [worker for worker in worker_exits if worker.seen_time - first_seen <= SAME_EVENT_SECONDS]
    killed = [worker for worker in simultaneous_exits if -worker.exit_code in FATAL_SIGNALS]
    if killed:
        name = signal.Signals(-killed[0].exit_code).name
        return killed[0], f"was killed ({name}){_format_current_phase(status)}{RESUME_HINT}"
    exits_by_rank = {worker.rank: worker for worker in worker_exits}
    failures = [failure for failure in read_rank_failures(job_dir, status) if failure.rank in exits_by_rank]
    if failures:
        failure = failures[0]
        root_exit = exits_by_rank[failure.rank]
        if root_exit.rank != 0 and status.get("state") == "failed" and failure.text == status.get("error"):
            root_exit = exits_by_rank.get(0, root_exit)  # they agreed on it, and rank 0 printed it
        return root_exit, failure.text if root_exit.rank == 0 else f"failed: {failure.text}"
    unexpected = [worker for worker in worker_exits if worker.exit_code not in STOPPED_EXIT_CODES]
    root_exit = (unexpected or worker_exits)[0]
    phase = _format_current_phase(status)
    if root_exit.exit_code < 0:
        return root_exit, f"ended by {signal.Signals(-root_exit.exit_code).name}{phase}{RESUME_HINT}"
    return (
        root_exit,
        f"ended with exit code {root_exit.exit_code}{phase} and left no cause; its last lines are in the log",
    )


def find_first_failure(job_dir: Path) -> str | None:
    """What the first rank to fail died of, with its rank unless it is 0; None if no rank wrote anything."""
    failures = read_rank_failures(job_dir, read_job_status(job_dir))
    if not failures:
        return None
    return failures[0].text if failures[0].rank == 0 else f"rank {failures[0].rank} failed: {failures[0].text}"


def read_rank_failures(job_dir: Path, status: Mapping[str, Any]) -> list[RankFailure]:
    """What the ranks of a job wrote about their failures, the oldest first; `status` is rank 0's."""
    failures: list[RankFailure] = []
    if status.get("state") == "failed" and status.get("error"):
        with suppress(OSError):
            failures.append(RankFailure(0, (job_dir / "status.json").stat().st_mtime, str(status["error"])))
    for path in job_dir.glob("rank-*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            text = json.loads(path.read_text(encoding="utf-8"))["error"]
            if text:
                failures.append(RankFailure(int(path.stem.partition("-")[2]), path.stat().st_mtime, str(text)))
    return sorted(failures, key=lambda failure: (failure.time, failure.rank))


def describe_exit_code(exit_code: int, hint: str = "") -> str:
    """A cause, of a process's exit code alone: negative for a signal, as Python has it, or 128 + signal as shells do.

    `hint` is added where the process was killed.
    """
    number = -exit_code if exit_code < 0 else exit_code - 128
    if exit_code in (143, 130):
        return "it was stopped"
    if number == signal.SIGKILL:
        return f"its process was killed (out of memory?){hint}"
    with suppress(ValueError):
        return f"its process ended by {signal.Signals(number).name}"
    return f"its process ended with exit code {exit_code} and no results"


def _format_current_phase(status: Mapping[str, Any]) -> str:
    """What the job was doing, as status.json says: ` during <phase>, step 3 of 8`."""
    phase, total = status.get("phase"), status.get("total")
    if not phase:
        return ""
    position = f", {status.get('unit') or 'unit'} {status.get('done', 0)} of {total}" if total and total > 1 else ""
    return f" during {phase}{position}"
