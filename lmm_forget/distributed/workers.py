"""A job on several devices of this machine: one worker for each, started once through torch's elastic launcher.

The process that starts them, the agent, loads no model: it waits, passes on requests to stop, and says how the job
ended. When one worker ends badly all end, and status.json names the rank and the cause in one line.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.distributed.heartbeat import (
    close_running_status,
    overwrite_status,
    rank_failure_path,
    read_job_status,
)
from lmm_forget.distributed.stop_signals import STOP_LIMIT_SECONDS, StopRequested, die_with_parent
from lmm_forget.errors import LaunchError

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

AGENT_VARIABLE = "LMM_FORGET_AGENT"
"""In a worker's environment: the number of the process that started it."""
SHUTDOWN_SECONDS = int(STOP_LIMIT_SECONDS) + 15
"""Seconds that workers get to reach a step boundary and save; they end themselves after STOP_LIMIT."""
SAME_EVENT_SECONDS = 5.0
"""Seconds in which processes that died of the same event are seen to be gone; one that the agent had to kill is gone
half a minute after the first."""
STOPPED_EXIT_CODES = (143, 130, -signal.SIGTERM, -signal.SIGUSR2)
"""Exit codes of workers that ended because they were asked to."""
FATAL_SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
"""Signals that are a cause. SIGABRT is not among them: it is how a rank ends whose peer is gone."""


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended: its exit code (negative: a signal's number), and when that was seen (seconds)."""

    rank: int
    exit_code: int
    seen_time: float


def die_with_agent(environment: MutableMapping[str, str]) -> None:
    """In a worker: never outlive the agent, however that ends. Nothing in a process that no agent started."""
    agent = environment.pop(AGENT_VARIABLE, None)
    if agent is not None:
        die_with_parent(int(agent))


def run_workers(job_file: Path, config: Mapping[str, Any]) -> int:
    """Start one worker per device of this machine for job.yaml at `path` and wait for them; returns the exit code.

    Raises LaunchError, before anything is started, where this machine cannot hold the job.
    """
    hardware, job_dir = config["hardware"], job_file.parent
    if hardware["nodes"] > 1:
        raise LaunchError(
            f"hardware.nodes={hardware['nodes']}: the other machines' processes have to be started too; use "
            "hydra/launcher=slurm, or torchrun on every machine"
        )
    if hardware["accelerator"] == "gpu":
        _check_gpu_count(hardware["devices"])
    for old in job_dir.glob("rank-*.json"):
        old.unlink()
    try:
        worker_exits = _launch_workers(job_file, hardware["devices"])
    except (StopRequested, KeyboardInterrupt):
        worker_exits = None
    return _write_final_status(job_dir, hardware["devices"], worker_exits)


def _check_gpu_count(devices: int) -> None:
    import torch

    visible_gpus = torch.cuda.device_count()
    if devices > visible_gpus:
        raise LaunchError(f"hardware.devices={devices}, but {visible_gpus} GPUs are visible here")


def _launch_workers(job_file: Path, devices: int) -> list[WorkerExit] | None:
    """Run the workers to their end. Returns those that ended badly, the first seen first; None if asked to stop."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    os.environ[AGENT_VARIABLE] = str(os.getpid())
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # or it looks the host's name up, which may lead nowhere
    try:
        with _silence_logging():
            elastic_launch(_build_launch_config(devices), sys.executable)(
                "-m", "lmm_forget.experiment.job", str(job_file)
            )
    except ChildFailedError as error:
        return [WorkerExit(rank, failure.exitcode, failure.timestamp) for rank, failure in error.failures.items()]
    except SignalException:
        return None
    return []


def _build_launch_config(devices: int) -> LaunchConfig:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=secrets.token_hex(8),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",  # whatever port is free when it is bound
        local_addr="127.0.0.1",
        max_restarts=0,
        # SIGINT is left to Python: then the workers get SIGTERM, which they understand.
        signals_to_handle="SIGTERM,SIGUSR2,SIGHUP",
        shutdown_timeout=SHUTDOWN_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # workers print to where the agent does
    )


@contextmanager
def _silence_logging() -> Iterator[None]:
    """Silence the launcher's own log: what a person has to know is said once, at the end."""
    saved_level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(saved_level)


def _write_final_status(job_dir: Path, num_workers: int, worker_exits: list[WorkerExit] | None) -> int:
    """Give a job of `size` workers its last word in status.json; returns the exit code."""
    status = read_job_status(job_dir)
    state = status.get("state")
    if worker_exits is None or (worker_exits and all(end.exit_code in STOPPED_EXIT_CODES for end in worker_exits)):
        close_running_status(job_dir, "interrupted")
        return {"done": 0, "failed": 1}.get(str(state), 143)
    if not worker_exits:
        return 0
    root_exit, cause = find_root_cause(job_dir, worker_exits, status)
    if root_exit.rank == 0 and state == "failed" and cause == status.get("error"):
        return 2 if root_exit.exit_code == 2 else 1
    line = f"rank {root_exit.rank} of {num_workers} {cause}"
    overwrite_status(job_dir, "failed", line)
    print(f"lmm-forget: error: {line}", file=sys.stderr, flush=True)
    return 2 if root_exit.exit_code == 2 else 1


def find_root_cause(job_dir: Path, worker_exits: list[WorkerExit], status: Mapping[str, Any]) -> tuple[WorkerExit, str]:
    """Which of the workers that ended badly is the cause, and what it died of, in words that follow its name.

    A worker that was killed leaves no word, and its peers' words are about the lost connection: it comes first. Of
    those that said something, the one whose file is the oldest: its connections closed after it was written. What
    rank 0 said itself is returned as it stands in status.json.
    """
    simultaneous_exits = [
        end for end in worker_exits if end.seen_time - worker_exits[0].seen_time <= SAME_EVENT_SECONDS
    ]
    killed = [end for end in simultaneous_exits if -end.exit_code in FATAL_SIGNALS]
    if killed:
        return (
            killed[0],
            f"was killed ({signal.Signals(-killed[0].exit_code).name}){_format_current_phase(status)}{_RESUME_HINT}",
        )
    reported_failures = [
        (when, end, text)
        for end in worker_exits
        for when, text in (_read_rank_failure(job_dir, end.rank, status),)
        if text
    ]
    if reported_failures:
        _, root_exit, text = min(reported_failures, key=lambda candidate: (candidate[0], candidate[1].rank))
        if root_exit.rank != 0 and status.get("state") == "failed" and text == status.get("error"):
            root_exit = next(
                (candidate for candidate in worker_exits if candidate.rank == 0), root_exit
            )  # they agreed on it, and rank 0 printed it
        return root_exit, text if root_exit.rank == 0 else f"failed: {text}"
    root_exit = next(
        (candidate for candidate in worker_exits if candidate.exit_code not in STOPPED_EXIT_CODES),
        worker_exits[0],
    )
    if root_exit.exit_code < 0:
        return (
            root_exit,
            f"ended by {signal.Signals(-root_exit.exit_code).name}{_format_current_phase(status)}{_RESUME_HINT}",
        )
    return (
        root_exit,
        f"ended with exit code {root_exit.exit_code}{_format_current_phase(status)} and left no cause; its "
        "last lines are in the log",
    )


_RESUME_HINT = "; the same command goes on from the last saved state"


def _read_rank_failure(job_dir: Path, rank: int, status: Mapping[str, Any]) -> tuple[float, str | None]:
    """When a rank wrote why it failed (seconds), and what; None if it did not."""
    try:
        if rank == 0:
            text = status.get("error") if status.get("state") == "failed" else None
            return (job_dir / "status.json").stat().st_mtime, str(text) if text else None
        path = rank_failure_path(job_dir, rank)
        return path.stat().st_mtime, str(json.loads(path.read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0, None


def _format_current_phase(status: Mapping[str, Any]) -> str:
    """What the job was doing, as status.json says: ` during <phase>, step 3 of 8`."""
    phase, total = status.get("phase"), status.get("total")
    if not phase:
        return ""
    at = f", {status.get('unit') or 'unit'} {status.get('done', 0)} of {total}" if total and total > 1 else ""
    return f" during {phase}{at}"
