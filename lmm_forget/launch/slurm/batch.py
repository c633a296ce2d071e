"""What a batch script does before and after srun: where the ranks meet; how the job ended, and whether it goes on.

    eval "$(python -m lmm_forget.launch.slurm.batch begin SUBMISSION)"
    srun … python -m lmm_forget.launch.slurm.task SUBMISSION
    python -m lmm_forget.launch.slurm.batch end SUBMISSION "$?"

A job that stopped because of Slurm's notice (a time limit or a pre-emption ahead) is put back into the queue by its
own batch script, as often as `max_requeues` allows, and goes on from the store. scancel kills the batch script, so a
cancelled job never comes back.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lmm_forget.distributed.heartbeat import close_status, correct_status, read_status
from lmm_forget.errors import LmmForgetError, print_error
from lmm_forget.launch.slurm import queue
from lmm_forget.launch.slurm.task import STOPPED, own_id
from lmm_forget.launch.slurm.ticket import Submission

PORTS = range(20000, 32768)
"""Where the ranks meet: below the range from which systems take ports for outgoing connections."""
NOTICED = 128 + signal.SIGUSR2


def main(arguments: Sequence[str] | None = None) -> int:
    """`begin` prints shell lines; `end` returns the exit code that the batch script ends with."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for number in (signal.SIGTERM, signal.SIGUSR2):  # a notice that comes now finds the job at its end anyway
        signal.signal(number, signal.SIG_IGN)
    if given[0] == "begin":
        print(f"export MASTER_ADDR={meeting_host(os.environ)} MASTER_PORT={meeting_port(os.environ)}")
        return 0
    try:
        submission = Submission.read(Path(given[1]))
        os.chdir(submission.cwd)
        return end(submission, int(given[2]), os.environ)
    except (LmmForgetError, OSError) as error:
        print_error(error)
        return int(given[2]) or 2


def meeting_host(env: Mapping[str, str]) -> str:
    """Where rank 0 is: the first node of the list, by a name that can be looked up."""
    from submitit.slurm.slurm import SlurmJobEnvironment, SlurmParseException

    nodes: list[str] = []
    if env.get("SLURM_JOB_NODELIST"):
        with suppress(SlurmParseException):
            nodes = SlurmJobEnvironment().hostnames
    if len(nodes) == 1:
        return "127.0.0.1"
    for name in (*nodes[:1], socket.gethostname()):  # the batch script runs on the first node
        with suppress(OSError):
            socket.getaddrinfo(name, None)
            return name
    return "127.0.0.1"


def meeting_port(env: Mapping[str, str]) -> int:
    """A free port, sought from a place of the job's own, so that jobs that start together on a node do not meet."""
    start = int(env.get("SLURM_JOB_ID", "0")) % len(PORTS)
    for offset in range(len(PORTS)):
        port = PORTS[(start + offset) % len(PORTS)]
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return port
    return PORTS[start]


def end(submission: Submission, code: int, env: Mapping[str, str]) -> int:
    """Say in the job's folder how it ended where it could not do so itself; put it back where it has more to do."""
    folder = submission.job(env.get("SLURM_ARRAY_TASK_ID")).parent
    if code == 0 or (folder / "results.json").exists():
        return 0
    failure = first_failure(folder)
    if code not in (NOTICED, STOPPED) or (code == STOPPED and failure):  # srun ends the others with SIGTERM
        correct_status(folder, "failed", failure or ended_by(code))
        return code
    close_status(folder, "interrupted")
    slurm_id = own_id(env)  # not SLURM_JOB_ID: one job of an array has the number of the whole array
    known = queue.fields(slurm_id)
    if known.get("JobState") != "RUNNING" or (code == STOPPED and not _preempted(known)):
        return STOPPED
    restarts = int(env.get("SLURM_RESTART_COUNT", "0"))
    if restarts >= submission.max_requeues:
        _say(f"not put back: it was started again {restarts} times (hydra.launcher.max_requeues)")
        return STOPPED
    _say(f"saved; put back into the queue (start {restarts + 2})")
    refused = queue.requeue(slurm_id)
    if refused:
        _say(f"Slurm did not put it back: {refused}; the same command submits it again")
    return STOPPED


def first_failure(folder: Path) -> str | None:
    """What the first rank to fail died of: the others' words are about the connection they lost to it."""
    status = read_status(folder)
    told: list[tuple[float, str]] = []
    with suppress(OSError):
        if status.get("state") == "failed" and status.get("error"):
            told.append(((folder / "status.json").stat().st_mtime, str(status["error"])))
    for path in folder.glob("rank-*.json"):
        with suppress(OSError, ValueError, AttributeError):
            error = json.loads(path.read_text(encoding="utf-8")).get("error")
            if error:
                told.append((path.stat().st_mtime, f"{path.stem.replace('-', ' ')} failed: {error}"))
    return min(told)[1] if told else None


def ended_by(code: int) -> str:
    """A cause, of srun's exit code alone."""
    if code == 128 + signal.SIGKILL:
        return "its process was killed (out of memory?)"
    if code > 128:
        with suppress(ValueError):
            return f"its process ended by {signal.Signals(code - 128).name}"
    return f"its process ended with exit code {code} and no results"


def _preempted(known: Mapping[str, str]) -> bool:
    """Whether a job that got SIGTERM got it because another one wants its place."""
    return known.get("PreemptTime", "None") not in ("None", "", "N/A")


def _say(text: str) -> None:
    print(f"lmm-forget: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
