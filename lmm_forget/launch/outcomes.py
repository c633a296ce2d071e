"""How jobs ended, and how a launch of several jobs did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lmm_forget.launch.job_folders import Job

LOG_TAIL_BYTES = 16384
"""Bytes at the end of a log in which its last lines are sought."""


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended. `cause` is one line; `log_tail` the last lines it printed, where they add to the cause."""

    job: Job
    is_finished: bool
    cause: str | None = None
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True)
class LaunchResult:
    """An outcome for each job, in the order given; or, where the launch ended before that, the command's exit code.

    `message` is the line for stderr that says why it ended early.
    """

    outcomes: tuple[JobOutcome, ...] = ()
    early_exit_code: int | None = None
    message: str = ""


DRY_RUN_FINISHED = LaunchResult(early_exit_code=0)
"""The plan was all that was asked for (`sweep.dry_run=true`); nothing was started."""
SUBMIT_ONLY_FINISHED = LaunchResult(early_exit_code=0)
"""Submitting was all that was asked for (`sweep.submit_only=true`); the jobs run by themselves."""
SWEEP_STOPPED = LaunchResult(early_exit_code=130, message="stopped; the same command goes on where it ended")
"""Ctrl-C or SIGTERM ended the jobs; they are resumed by the same command."""
SLURM_WATCH_STOPPED = LaunchResult(early_exit_code=130, message="stopped watching; the same command watches again")
"""Ctrl-C ended the command that watched; the jobs run by themselves."""


class HydraRunEnded(BaseException):
    """Ends Hydra's run from within it, with the result of the launch; `lmm_forget.cli.run` alone catches it.

    Hydra gives a launcher no other way: it must return an outcome for every grid point, and a sweeper then asks for
    the next batch. Not an Exception, because Hydra and its sweepers take those for failures of one grid point.
    """

    def __init__(self, result: LaunchResult) -> None:
        super().__init__()
        self.result = result


def read_log_tail(log_path: Path, start: int = 0, max_lines: int = 12) -> tuple[str, ...]:
    """The last lines of a file, from the byte `start` on, that are not blank; none if there is no such file."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(start, log.seek(0, 2) - LOG_TAIL_BYTES))
            text = log.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(line for line in text.splitlines() if line.strip())[-max_lines:]
