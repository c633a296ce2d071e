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

from lmm_forget.distributed.heartbeat import close_status, correct_status, rank_failure, read_status
from lmm_forget.distributed.stop_signals import STOP_LIMIT, Interrupted, end_with
from lmm_forget.errors import LaunchError

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

AGENT = "LMM_FORGET_AGENT"
"""In a worker's environment: the number of the process that started it."""
SHUTDOWN = int(STOP_LIMIT) + 15
"""Seconds that workers get to reach a step boundary and save; they end themselves after STOP_LIMIT."""
TOGETHER = 5.0
"""Seconds in which processes that died of the same event are seen to be gone; one that the agent had to kill is gone
half a minute after the first."""
STOPPED = (143, 130, -signal.SIGTERM, -signal.SIGUSR2)
"""Exit codes of workers that ended because they were asked to."""
SUDDEN = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
"""Signals that are a cause. SIGABRT is not among them: it is how a rank ends whose peer is gone."""


@dataclass(frozen=True)
class End:
    """How a worker ended: its exit code (negative: a signal's number), and when that was seen (seconds)."""

    rank: int
    code: int
    seen: float


def follow_agent(env: MutableMapping[str, str]) -> None:
    """In a worker: never outlive the agent, however that ends. Nothing in a process that no agent started."""
    agent = env.pop(AGENT, None)
    if agent is not None:
        end_with(int(agent))


def run_workers(path: Path, config: Mapping[str, Any]) -> int:
    """Start one worker per device of this machine for job.yaml at `path` and wait for them; returns the exit code.

    Raises LaunchError, before anything is started, where this machine cannot hold the job.
    """
    hardware, folder = config["hardware"], path.parent
    if hardware["nodes"] > 1:
        raise LaunchError(
            f"hardware.nodes={hardware['nodes']}: the other machines' processes have to be started too; use "
            "hydra/launcher=slurm, or torchrun on every machine"
        )
    if hardware["accelerator"] == "gpu":
        _enough_gpus(hardware["devices"])
    for old in folder.glob("rank-*.json"):
        old.unlink()
    try:
        ends = _launch(path, hardware["devices"])
    except (Interrupted, KeyboardInterrupt):
        ends = None
    return _conclude(folder, hardware["devices"], ends)


def _enough_gpus(devices: int) -> None:
    import torch

    found = torch.cuda.device_count()
    if devices > found:
        raise LaunchError(f"hardware.devices={devices}, but {found} GPUs are visible here")


def _launch(path: Path, devices: int) -> list[End] | None:
    """Run the workers to their end. Returns those that ended badly, the first seen first; None if asked to stop."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    os.environ[AGENT] = str(os.getpid())
    if sys.platform == "linux":
        os.environ.setdefault(
            "GLOO_SOCKET_IFNAME", "lo"
        )  # or it looks the host's name up, which may lead nowhere
    try:
        with _quiet():
            elastic_launch(_launch_config(devices), sys.executable)(
                "-m", "lmm_forget.experiment.job", str(path)
            )
    except ChildFailedError as error:
        return [End(rank, one.exitcode, one.timestamp) for rank, one in error.failures.items()]
    except SignalException:
        return None
    return []


def _launch_config(devices: int) -> LaunchConfig:
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
        shutdown_timeout=SHUTDOWN,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # workers print to where the agent does
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the launcher's own log: what a person has to know is said once, at the end."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _conclude(folder: Path, size: int, ends: list[End] | None) -> int:
    """Give a job of `size` workers its last word in status.json; returns the exit code."""
    status = read_status(folder)
    state = status.get("state")
    if ends is None or (ends and all(end.code in STOPPED for end in ends)):
        close_status(folder, "interrupted")
        return {"done": 0, "failed": 1}.get(str(state), 143)
    if not ends:
        return 0
    end, cause = blame(folder, ends, status)
    if end.rank == 0 and state == "failed" and cause == status.get("error"):
        return 2 if end.code == 2 else 1
    line = f"rank {end.rank} of {size} {cause}"
    correct_status(folder, "failed", line)
    print(f"lmm-forget: error: {line}", file=sys.stderr, flush=True)
    return 2 if end.code == 2 else 1


def blame(folder: Path, ends: list[End], status: Mapping[str, Any]) -> tuple[End, str]:
    """Which of the workers that ended badly is the cause, and what it died of, in words that follow its name.

    A worker that was killed leaves no word, and its peers' words are about the lost connection: it comes first. Of
    those that said something, the one whose file is the oldest: its connections closed after it was written. What
    rank 0 said itself is returned as it stands in status.json.
    """
    soon = [end for end in ends if end.seen - ends[0].seen <= TOGETHER]
    killed = [end for end in soon if -end.code in SUDDEN]
    if killed:
        return killed[0], f"was killed ({signal.Signals(-killed[0].code).name}){_during(status)}{_GOES_ON}"
    told = [
        (when, end, text) for end in ends for when, text in (_last_word(folder, end.rank, status),) if text
    ]
    if told:
        _, end, text = min(told, key=lambda one: (one[0], one[1].rank))
        if end.rank != 0 and status.get("state") == "failed" and text == status.get("error"):
            end = next(
                (one for one in ends if one.rank == 0), end
            )  # they agreed on it, and rank 0 printed it
        return end, text if end.rank == 0 else f"failed: {text}"
    end = next((one for one in ends if one.code not in STOPPED), ends[0])
    if end.code < 0:
        return end, f"ended by {signal.Signals(-end.code).name}{_during(status)}{_GOES_ON}"
    return (
        end,
        f"ended with exit code {end.code}{_during(status)} and left no cause; its last lines are in the log",
    )


_GOES_ON = "; the same command goes on from the last saved state"


def _last_word(folder: Path, rank: int, status: Mapping[str, Any]) -> tuple[float, str | None]:
    """When a rank wrote why it failed (seconds), and what; None if it did not."""
    try:
        if rank == 0:
            text = status.get("error") if status.get("state") == "failed" else None
            return (folder / "status.json").stat().st_mtime, str(text) if text else None
        path = rank_failure(folder, rank)
        return path.stat().st_mtime, str(json.loads(path.read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0, None


def _during(status: Mapping[str, Any]) -> str:
    """What the job was doing, as status.json says: ` during <phase>, step 3 of 8`."""
    phase, total = status.get("phase"), status.get("total")
    if not phase:
        return ""
    at = f", {status.get('unit') or 'unit'} {status.get('done', 0)} of {total}" if total and total > 1 else ""
    return f" during {phase}{at}"
