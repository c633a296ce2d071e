"""Child processes: their environment, how many run side by side, and how they end."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from lmm_forget.distributed.heartbeat import close_status, read_status
from lmm_forget.distributed.workers import SHUTDOWN
from lmm_forget.errors import ConfigError
from lmm_forget.experiment.job import thread_environment
from lmm_forget.files import naming
from lmm_forget.launch.jobs import Job

PR_SET_PDEATHSIG = 1
POLL = 0.2
DISTRIBUTED = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
DISTRIBUTED_PREFIXES = ("TORCHELASTIC_", "ROLE_", "GROUP_WORLD", "SLURM_", "PMI_", "PMIX_", "OMPI_")


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `cause` is one line; `log_tail` the last lines it printed, where they add to the cause."""

    job: Job
    finished: bool
    cause: str | None = None
    log_tail: tuple[str, ...] = ()


class Watcher(Protocol):
    """Who is told about a sweep while it runs."""

    def started(self, job: Job) -> None:
        """A process for this job exists now."""

    def ended(self, outcome: Outcome) -> None:
        """The job's process is gone."""

    def tick(self) -> None:
        """A moment has passed."""


class Stopped(BaseException):
    """Ctrl-C or SIGTERM ended a sweep; its children are gone and can go on later."""


def side_by_side(configs: Sequence[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """How many jobs run at once at most, and the ids of the GPUs they share out (none on CPU).

    Raises ConfigError where this machine cannot hold one of the jobs.
    """
    hardware = [config["hardware"] for config in configs]
    _one_machine(hardware)
    on_gpus = [one["devices"] for one in hardware if one["accelerator"] == "gpu"]
    gpus = visible_gpus() if on_gpus else []
    if on_gpus and not gpus:
        raise ConfigError("hardware.accelerator=gpu, but no GPU is visible here; use hardware=cpu")
    if on_gpus and max(on_gpus) > len(gpus):
        raise ConfigError(
            f"hardware.devices={max(on_gpus)}, but {_many_gpus(gpus)} visible here; use hardware.devices={len(gpus)}"
        )
    if gpus:
        carried = len(gpus) // min(on_gpus)
    else:
        carried = max(
            1, len(os.sched_getaffinity(0)) // max(one["threads"] * one["devices"] for one in hardware)
        )
    numbers = [one["jobs"] for one in hardware if one["jobs"] != "auto"]
    most = min(numbers) if numbers else carried
    return (min(most, carried) if gpus else most), gpus


def _one_machine(hardware: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError where a job wants processes on machines that nothing here can start one on."""
    nodes = max(one["nodes"] for one in hardware)
    if nodes > 1:
        devices = max(one["devices"] for one in hardware)
        raise ConfigError(
            f"hardware.nodes={nodes}: jobs started here run on this machine alone; add hydra/launcher=slurm, or start "
            f"one job on every machine with torchrun --nnodes {nodes} --nproc_per_node {devices} -m lmm_forget.run …"
        )


def _many_gpus(gpus: Sequence[str]) -> str:
    return f"{len(gpus)} GPU is" if len(gpus) == 1 else f"{len(gpus)} GPUs are"


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use, from CUDA_VISIBLE_DEVICES or else the driver's own list."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [item.strip() for item in visible.split(",") if item.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [
        str(index)
        for index, line in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))
    ]


def child_environment(job: Job, gpus: Sequence[str], base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job's process: no traces of a distributed launch, fixed threads, its own GPUs if any."""
    env = {
        key: value
        for key, value in base.items()
        if key not in DISTRIBUTED and not key.startswith(DISTRIBUTED_PREFIXES)
    }
    env.update(thread_environment(job.config["hardware"]["threads"]))
    env["PYTHONUNBUFFERED"] = "1"
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return env


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen[bytes]
    gpus: list[str]
    log_start: int


@dataclass
class Pool:
    """Runs jobs as processes, at most `size` at once, each with GPUs of its own where `gpus` are given.

    A job has as many as its `hardware.devices`; one that wants more than are free waits for them, and so do those
    behind it. `grace` is how many seconds a stopped child gets to save before its process group is killed.
    `pick(waiting, running)` says which of the waiting jobs is started next; `alive` is called all the time. Must be
    used from the main thread: a child is told to end when the thread that started it dies.
    """

    size: int
    watcher: Watcher
    gpus: list[str] = field(default_factory=list)
    grace: float = SHUTDOWN + 5.0
    pick: Callable[[Sequence[Job], Sequence[Job]], int] = lambda waiting, running: 0
    alive: Callable[[], None] = lambda: None
    _children: list[_Child] = field(default_factory=list)
    _signals: int = 0
    _next: Job | None = None

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run all jobs to their end, whatever becomes of the others. Raises Stopped after Ctrl-C or SIGTERM."""
        waiting, free, outcomes = list(jobs), list(self.gpus), {}
        self._next = None
        previous = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            while waiting or self._children:
                self._start_some(waiting, free)
                time.sleep(POLL)
                for child in [child for child in self._children if child.process.poll() is not None]:
                    self._children.remove(child)
                    free += child.gpus
                    outcome = outcomes[child.job.name] = self._outcome(child)
                    self.watcher.ended(outcome)
                self.watcher.tick()
                self.alive()
                if self._signals:
                    raise Stopped
        finally:
            self._stop_all()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return [outcomes[job.name] for job in jobs]

    def _start_some(self, waiting: list[Job], free: list[str]) -> None:
        """Start as many of the waiting jobs as there is room for, each with its GPUs out of `free`."""
        while waiting and len(self._children) < self.size and not self._signals:
            if self._next is None:
                self._next = waiting[self.pick(waiting, [child.job for child in self._children])]
            job = self._next
            wanted = _gpus_of(job) if self.gpus else 0
            if wanted > len(free):
                return
            self._next = None
            waiting.remove(job)
            self._start(job, [free.pop(0) for _ in range(wanted)])

    def _start(self, job: Job, gpus: list[str]) -> None:
        with naming(job.log), job.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "lmm_forget.experiment.job", str(job.file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(job, gpus, os.environ),
                start_new_session=True,
                preexec_fn=_DieWithParent(os.getpid()),
            )
            self._children.append(_Child(job, process, gpus, log.tell()))
        self.watcher.started(job)

    def _outcome(self, child: _Child) -> Outcome:
        """Read how a job ended from its exit code and its last status."""
        code, job = child.process.returncode, child.job
        _signal_group(child, signal.SIGKILL)  # whatever it left behind
        if code == 0 and (job.folder / "results.json").exists():
            return Outcome(job, finished=True)
        status = read_status(job.folder)
        told = status.get("error") if status.get("state") == "failed" else None
        if code == 2 and told:
            return Outcome(job, finished=False, cause=str(told))
        cause = str(told) if told else _ended_by(code)
        if not told:
            close_status(job.folder, "failed", cause)  # it could not say so itself
        return Outcome(job, finished=False, cause=cause, log_tail=_tail(child))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _stop_all(self) -> None:
        """SIGTERM to all that still run, SIGKILL to those that do not end in time (at once on a second Ctrl-C)."""
        before = self._signals
        for child in self._children:
            _signal_group(child, signal.SIGTERM)
        limit = time.monotonic() + self.grace
        while any(child.process.poll() is None for child in self._children):
            if time.monotonic() > limit or self._signals > before:
                break
            time.sleep(POLL / 2)
        for child in self._children:
            _signal_group(child, signal.SIGKILL)
            child.process.wait()
            close_status(child.job.folder, "interrupted")
        self._children.clear()


class _DieWithParent:
    """Runs in the child before the program: SIGTERM it when its parent dies, also if that just happened."""

    def __init__(self, parent: int) -> None:
        self.parent = parent
        self.libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def __call__(self) -> None:
        if self.libc is None:
            return
        self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != self.parent:
            os._exit(143)


def _gpus_of(job: Job) -> int:
    hardware = job.config["hardware"]
    return int(hardware["devices"]) if hardware["accelerator"] == "gpu" else 0


def _signal_group(child: _Child, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, number)


def _ended_by(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (out of memory?); the same command goes on from the last saved state"
    if code < 0:
        return f"its process ended by {signal.Signals(-code).name}"
    if code in (143, 130):
        return "it was stopped"
    return f"its process ended with exit code {code} and no results"


def _tail(child: _Child, lines: int = 12) -> tuple[str, ...]:
    """Last lines of what this start of the job printed."""
    with child.job.log.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(child.log_start, size - 16384))
        text = log.read().decode("utf-8", errors="replace")
    return tuple(line for line in text.splitlines() if line.strip())[-lines:]
