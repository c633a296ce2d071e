"""What a batch script does before and after srun: where the ranks meet; how the job ended, and whether it goes on.

    eval "$(python -m lmm_forget.launch.slurm.batch_hooks begin SUBMISSION)"
    srun … python -m lmm_forget.launch.slurm.rank_task SUBMISSION
    python -m lmm_forget.launch.slurm.batch_hooks end SUBMISSION "$?"

A job that stopped because of Slurm's notice (a time limit or a pre-emption ahead) is put back into the queue by its
own batch script, as often as `max_requeues` allows, and goes on from the store. scancel kills the batch script, so a
cancelled job never comes back.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lmm_forget.distributed.heartbeat import close_running_status, overwrite_status
from lmm_forget.distributed.root_cause import describe_exit_code, find_first_failure
from lmm_forget.errors import LmmForgetError, print_error
from lmm_forget.launch.slurm import squeue
from lmm_forget.launch.slurm.job_record import SlurmSubmission
from lmm_forget.launch.slurm.rank_task import STOPPED_EXIT_CODE, get_slurm_job_id

MASTER_PORTS = range(20000, 32768)
"""Where the ranks meet: below the range from which systems take ports for outgoing connections."""
STOP_NOTICE_EXIT_CODE = 128 + signal.SIGUSR2


def main(arguments: Sequence[str] | None = None) -> int:
    """`begin` prints shell lines; `end` returns the exit code that the batch script ends with."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    for number in (signal.SIGTERM, signal.SIGUSR2):  # a notice that comes now finds the job at its end anyway
        signal.signal(number, signal.SIG_IGN)
    if argv[0] == "begin":
        print(f"export MASTER_ADDR={find_master_address(os.environ)} MASTER_PORT={find_master_port(os.environ)}")
        return 0
    try:
        submission = SlurmSubmission.read(Path(argv[1]))
        os.chdir(submission.cwd)
        return finish_batch_job(submission, int(argv[2]), os.environ)
    except (LmmForgetError, OSError) as error:
        print_error(error)
        return int(argv[2]) or 2


def find_master_address(environment: Mapping[str, str]) -> str:
    """Where rank 0 is: the first node of the list, by a name that can be looked up."""
    from submitit.slurm.slurm import SlurmJobEnvironment, SlurmParseException

    nodes: list[str] = []
    if environment.get("SLURM_JOB_NODELIST"):
        with suppress(SlurmParseException):
            nodes = SlurmJobEnvironment().hostnames
    if len(nodes) == 1:
        return "127.0.0.1"
    for name in (*nodes[:1], socket.gethostname()):  # the batch script runs on the first node
        with suppress(OSError):
            socket.getaddrinfo(name, None)
            return name
    return "127.0.0.1"


def find_master_port(environment: Mapping[str, str]) -> int:
    """A free port, sought from a place of the job's own, so that jobs that start together on a node do not meet."""
    start = int(environment.get("SLURM_JOB_ID", "0")) % len(MASTER_PORTS)
    for offset in range(len(MASTER_PORTS)):
        port = MASTER_PORTS[(start + offset) % len(MASTER_PORTS)]
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return port
    return MASTER_PORTS[start]


def finish_batch_job(submission: SlurmSubmission, exit_code: int, environment: Mapping[str, str]) -> int:
    """Write how a job ended where it could not do so itself; put it back into the queue where it has more to do."""
    job_dir = submission.get_job_file(environment.get("SLURM_ARRAY_TASK_ID")).parent
    if exit_code == 0 or (job_dir / "results.json").exists():
        return 0
    failure = find_first_failure(job_dir)
    if exit_code not in (STOP_NOTICE_EXIT_CODE, STOPPED_EXIT_CODE) or (
        exit_code == STOPPED_EXIT_CODE and failure
    ):  # srun ends the others with SIGTERM
        overwrite_status(job_dir, "failed", failure or describe_exit_code(exit_code))
        return exit_code
    close_running_status(job_dir, "interrupted")
    slurm_id = get_slurm_job_id(environment)  # not SLURM_JOB_ID: one job of an array has the number of the whole array
    job_fields = squeue.read_job_fields(slurm_id)
    if job_fields.get("JobState") != "RUNNING" or (exit_code == STOPPED_EXIT_CODE and not _is_preempted(job_fields)):
        return STOPPED_EXIT_CODE
    restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
    if restarts >= submission.max_requeues:
        _print_message(f"not put back: it was started again {restarts} times (hydra.launcher.max_requeues)")
        return STOPPED_EXIT_CODE
    _print_message(f"saved; put back into the queue (start {restarts + 2})")
    requeue_error = squeue.requeue_job(slurm_id)
    if requeue_error:
        _print_message(f"Slurm did not put it back: {requeue_error}; the same command submits it again")
    return STOPPED_EXIT_CODE


def _is_preempted(job_fields: Mapping[str, str]) -> bool:
    """Whether a job that got SIGTERM got it because another one wants its place."""
    return job_fields.get("PreemptTime", "None") not in ("None", "", "N/A")


def _print_message(text: str) -> None:
    print(f"lmm-forget: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
