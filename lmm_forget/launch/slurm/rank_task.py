"""What srun starts, once per device: Slurm's variables become torchrun's, and the task becomes its job.

    srun … python -m lmm_forget.launch.slurm.rank_task multirun/demo/.slurm/<submission>.json

A single task on one device runs without any of these variables. Rank 0 prints to the job's job.log, rank n to
rank-<n>.log beside it. Exit code 128 + the signal's number means that the job stopped because it was asked to; other
ranks then return 0, so that srun does not end rank 0 while it saves.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmm_forget.distributed.heartbeat import overwrite_status, rank_failure_path
from lmm_forget.errors import LaunchError, LmmForgetError, print_error
from lmm_forget.launch.process_pool import DISTRIBUTED_VARIABLE_PREFIXES, DISTRIBUTED_VARIABLES
from lmm_forget.launch.slurm.job_record import SlurmJobRecord, SlurmSubmission

KEPT_VARIABLES = ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_TMPDIR")
"""Slurm's variables that a job may see; Lightning takes the others for its own settings."""
STOPPED_EXIT_CODE = 143
STOP_MARGIN_SECONDS = 10.0
"""Seconds before the limit at which a job that still has not come to a safe point is ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this task of a submission; returns its exit code."""
    (submission_path,) = sys.argv[1:] if arguments is None else arguments
    try:
        submission = SlurmSubmission.read(Path(submission_path))
        os.chdir(submission.cwd)
        job_file = submission.get_job_file(os.environ.get("SLURM_ARRAY_TASK_ID"))
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        slurm_id = get_slurm_job_id(os.environ)
        worker = build_rank_variables(os.environ)
        skip_reason = _find_skip_reason(job_file.parent, submission, slurm_id, is_rank_zero=rank == 0)
    except (LmmForgetError, OSError) as error:
        print_error(error)
        return 2
    if skip_reason is not None:
        print(skip_reason, flush=True)
        return 0
    replace_distributed_variables(worker)
    _redirect_output(job_file.parent / ("job.log" if rank == 0 else f"rank-{rank}.log"))
    return _run_job_on_rank(job_file, rank, submission)


def get_slurm_job_id(environment: Mapping[str, str]) -> str:
    """This job's id as squeue writes it: `12`, or `12_3` in an array."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID", "")


def build_rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables of this task; none for the only task of a job. Raises LaunchError if Slurm's are missing.

    MASTER_ADDR and MASTER_PORT were chosen by the batch script (lmm_forget.launch.slurm.batch_hooks), once for all
    tasks.
    """
    num_tasks = int(environment.get("SLURM_NTASKS", environment.get("SLURM_NPROCS", "1")))
    if num_tasks == 1:
        return {}
    try:
        node = int(environment["SLURM_NODEID"])
        per_node = _parse_tasks_per_node(
            environment.get("SLURM_STEP_TASKS_PER_NODE") or environment["SLURM_TASKS_PER_NODE"]
        )
        return {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": str(num_tasks),
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(per_node[node]),
            "MASTER_ADDR": environment["MASTER_ADDR"],
            "MASTER_PORT": environment["MASTER_PORT"],
        }
    except (KeyError, ValueError, IndexError) as error:
        raise LaunchError(f"Slurm started {num_tasks} tasks but their place cannot be read: {error!r}") from error


def _parse_tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` -> [2, 2, 2, 1]: tasks on every node."""
    tasks_per_node: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        tasks_per_node += [int(count)] * int(times.rstrip(")") or 1)
    return tasks_per_node


def replace_distributed_variables(rank_variables: Mapping[str, str]) -> None:
    """Let this process see the place it has among the job's workers, and nothing else of how it was started."""
    for key in list(os.environ):
        if (
            key in DISTRIBUTED_VARIABLES or key.startswith(DISTRIBUTED_VARIABLE_PREFIXES)
        ) and key not in KEPT_VARIABLES:
            del os.environ[key]
    os.environ.update(rank_variables)
    if rank_variables.get("MASTER_ADDR") == "127.0.0.1" and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # or it looks the host's name up


def _find_skip_reason(job_dir: Path, submission: SlurmSubmission, slurm_id: str, *, is_rank_zero: bool) -> str | None:
    """Why there is nothing to do for this job: it is finished, or was submitted again. Else note its Slurm id."""
    if (job_dir / "results.json").exists():
        return f"{job_dir} is finished already"
    slurm_record = SlurmJobRecord.read(job_dir)
    if slurm_record is None or slurm_record.submission != submission.name:
        return f"{job_dir} belongs to another submission by now; nothing is done here"
    if is_rank_zero and slurm_record.id != slurm_id:  # the command that submitted it did not live to write it
        SlurmJobRecord(slurm_record.submission, slurm_id, slurm_record.output).write(job_dir)
    return None


def _redirect_output(log_path: Path) -> None:
    """Let everything this process and its children print end up in a file, behind what is there."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _run_job_on_rank(job_file: Path, rank: int, submission: SlurmSubmission) -> int:
    from lmm_forget.distributed import stop_signals
    from lmm_forget.experiment.job import main as run_job_file

    stop_signals.set_stop_limit(max(1.0, submission.signal - STOP_MARGIN_SECONDS))
    code = run_job_file([str(job_file)])
    for number in stop_signals.STOP_SIGNALS:  # whatever comes now is too late, and would make a failure of the end
        signal.signal(number, signal.SIG_IGN)
    if code == 1 and stop_signals.is_stop_requested():
        # Another rank stopped, or failed, while this one waited for it inside a collective call: the cause is
        # that one's.
        if rank:
            rank_failure_path(job_file.parent, rank).unlink(missing_ok=True)
        else:
            overwrite_status(job_file.parent, "interrupted")
        code = STOPPED_EXIT_CODE
    if code != STOPPED_EXIT_CODE:
        return code
    return 0 if rank else 128 + (stop_signals.get_stop_signal() or signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
