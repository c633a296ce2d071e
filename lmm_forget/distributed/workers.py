"""A job on several devices of this machine: one worker for each, started once through torch's elastic launcher.

The process that starts them, the agent, loads no model: it waits, forwards requests to stop, and records how the job
ended. When one worker fails all are ended, and status.json names the rank and the cause in one line.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.distributed.heartbeat import close_running_status, overwrite_status, read_job_status
from lmm_forget.distributed.root_cause import STOPPED_EXIT_CODES, WorkerExit, find_root_cause
from lmm_forget.distributed.stop_signals import STOP_LIMIT_SECONDS, StopRequested, die_with_parent
from lmm_forget.errors import LaunchError

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

AGENT_VARIABLE = "LMM_FORGET_AGENT"
"""In a worker's environment: the number of the process that started it."""
SHUTDOWN_SECONDS = int(STOP_LIMIT_SECONDS) + 15
"""Seconds that workers get to reach a step boundary and save; they end themselves after STOP_LIMIT."""


def die_with_agent(environment: MutableMapping[str, str]) -> None:
    """In a worker: end when the agent ends, however it ends. Does nothing in a process that no agent started."""
    agent = environment.pop(AGENT_VARIABLE, None)
    if agent is not None:
        die_with_parent(int(agent))


def run_workers(job_file: Path, config: Mapping[str, Any]) -> int:
    """Start one worker per device of this machine for a job.yaml and wait for them; returns the exit code.

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
    for stale_path in job_dir.glob("rank-*.json"):
        stale_path.unlink()
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
    """Silence the launcher's own log: what a user has to know is printed once, at the end."""
    saved_level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(saved_level)


def _write_final_status(job_dir: Path, num_workers: int, worker_exits: list[WorkerExit] | None) -> int:
    """Write how a job of `num_workers` workers ended into status.json, None: it was stopped; returns the exit code."""
    status = read_job_status(job_dir)
    state = status.get("state")
    if worker_exits is None or (
        worker_exits and all(worker.exit_code in STOPPED_EXIT_CODES for worker in worker_exits)
    ):
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
