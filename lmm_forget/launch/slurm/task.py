"""What srun starts, once per device: Slurm's variables become torchrun's, and the task becomes its job.

    srun … python -m lmm_forget.launch.slurm.task multirun/demo/.slurm/<submission>.json

A single task on one device runs without any of these variables. Rank 0 prints to the job's job.log, rank n to
rank-<n>.log beside it. Exit code 128 + the signal's number says that the job stopped because it was asked to; ranks
but the first then say 0, so that srun does not end the first one while it saves.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmm_forget.distributed.heartbeat import correct_status, rank_failure
from lmm_forget.errors import LaunchError, LmmForgetError, print_error
from lmm_forget.launch.processes import DISTRIBUTED, DISTRIBUTED_PREFIXES
from lmm_forget.launch.slurm.ticket import Submission, Ticket

KEPT = ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_TMPDIR")
"""Slurm's variables that a job may see; Lightning takes the others for orders."""
STOPPED = 143
MARGIN = 10.0
"""Seconds before the limit at which a job that still has not come to a safe point is ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this task of a submission; returns its exit code."""
    (listed,) = sys.argv[1:] if arguments is None else arguments
    try:
        submission = Submission.read(Path(listed))
        os.chdir(submission.cwd)
        job = submission.job(os.environ.get("SLURM_ARRAY_TASK_ID"))
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        slurm_id = own_id(os.environ)
        worker = worker_variables(os.environ)
        told = _nothing_to_do(job.parent, submission, slurm_id, first=rank == 0)
    except (LmmForgetError, OSError) as error:
        print_error(error)
        return 2
    if told is not None:
        print(told, flush=True)
        return 0
    replace_variables(worker)
    _print_to(job.parent / ("job.log" if rank == 0 else f"rank-{rank}.log"))
    return _run(job, rank, submission)


def own_id(env: Mapping[str, str]) -> str:
    """This job's id as squeue writes it: `12`, or `12_3` in an array."""
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID", "")


def worker_variables(env: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables of this task; none for the only task of a job. Raises LaunchError if Slurm's are missing.

    MASTER_ADDR and MASTER_PORT were chosen by the batch script (lmm_forget.launch.slurm.batch), once for all tasks.
    """
    size = int(env.get("SLURM_NTASKS", env.get("SLURM_NPROCS", "1")))
    if size == 1:
        return {}
    try:
        node = int(env["SLURM_NODEID"])
        per_node = _counts(env.get("SLURM_STEP_TASKS_PER_NODE") or env["SLURM_TASKS_PER_NODE"])
        return {
            "RANK": env["SLURM_PROCID"],
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": env["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(per_node[node]),
            "MASTER_ADDR": env["MASTER_ADDR"],
            "MASTER_PORT": env["MASTER_PORT"],
        }
    except (KeyError, ValueError, IndexError) as error:
        raise LaunchError(f"Slurm started {size} tasks but their place cannot be read: {error!r}") from error


def _counts(text: str) -> list[int]:
    """`2(x3),1` -> [2, 2, 2, 1]: tasks on every node."""
    found: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        found += [int(count)] * int(times.rstrip(")") or 1)
    return found


def replace_variables(worker: Mapping[str, str]) -> None:
    """Let this process see the place it has among the job's workers, and nothing else of how it was started."""
    for key in list(os.environ):
        if (key in DISTRIBUTED or key.startswith(DISTRIBUTED_PREFIXES)) and key not in KEPT:
            del os.environ[key]
    os.environ.update(worker)
    if worker.get("MASTER_ADDR") == "127.0.0.1" and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # or it looks the host's name up


def _nothing_to_do(folder: Path, submission: Submission, slurm_id: str, *, first: bool) -> str | None:
    """Why there is nothing to do for this job: it is finished, or was submitted again. Else note its Slurm id."""
    if (folder / "results.json").exists():
        return f"{folder} is finished already"
    ticket = Ticket.read(folder)
    if ticket is None or ticket.submission != submission.name:
        return f"{folder} belongs to another submission by now; nothing is done here"
    if first and ticket.id != slurm_id:  # the command that submitted it did not live to write it
        Ticket(ticket.submission, slurm_id, ticket.output).write(folder)
    return None


def _print_to(path: Path) -> None:
    """Let everything this process and its children print end up in a file, behind what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _run(job: Path, rank: int, submission: Submission) -> int:
    from lmm_forget.distributed import stop_signals
    from lmm_forget.experiment.job import main as work

    stop_signals.give(max(1.0, submission.signal - MARGIN))
    code = work([str(job)])
    for number in stop_signals.SIGNALS:  # whatever comes now is too late, and would make a failure of the end
        signal.signal(number, signal.SIG_IGN)
    if code == 1 and stop_signals.asked():
        # Another rank stopped, or failed, while this one waited for it inside a collective call: what that one has
        # to say counts.
        if rank:
            rank_failure(job.parent, rank).unlink(missing_ok=True)
        else:
            correct_status(job.parent, "interrupted")
        code = STOPPED
    if code != STOPPED:
        return code
    return 0 if rank else 128 + (stop_signals.asked_by() or signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
