"""Child processes: their environment, how many run side by side, and how they end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, Protocol

from lmm_forget.distributed.heartbeat import close_running_status, read_job_status
from lmm_forget.distributed.root_cause import RESUME_HINT, describe_exit_code
from lmm_forget.distributed.stop_signals import die_with_parent
from lmm_forget.distributed.workers import SHUTDOWN_SECONDS
from lmm_forget.errors import ConfigError
from lmm_forget.experiment.job import build_thread_environment
from lmm_forget.files import add_path_to_os_errors
from lmm_forget.launch.job_folders import Job
from lmm_forget.launch.outcomes import JobOutcome, read_log_tail

POLL_SECONDS = 0.2
DISTRIBUTED_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
DISTRIBUTED_VARIABLE_PREFIXES = ("TORCHELASTIC_", "ROLE_", "GROUP_WORLD", "SLURM_", "PMI_", "PMIX_", "OMPI_")


class JobObserver(Protocol):
    """Is called while a sweep runs."""

    def on_job_started(self, job: Job) -> None:
        """A process for this job exists now."""

    def on_job_ended(self, outcome: JobOutcome) -> None:
        """The job's process is gone."""

    def on_tick(self) -> None:
        """A moment has passed."""


def compute_parallel_capacity(configs: Sequence[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """How many jobs run at once at most, and the ids of the GPUs they share out (none on CPU).

    Raises ConfigError where this machine cannot hold one of the jobs.
    """
    hardware = [config["hardware"] for config in configs]
    _check_single_node(hardware)
    devices_per_job = [job_hardware["devices"] for job_hardware in hardware if job_hardware["accelerator"] == "gpu"]
    gpus = list_visible_gpus() if devices_per_job else []
    if devices_per_job and not gpus:
        raise ConfigError(
            "hardware.accelerator=gpu, but no GPU is visible here; use hardware=cpu, or for several processes "
            "hardware.accelerator=cpu"
        )
    if devices_per_job and max(devices_per_job) > len(gpus):
        raise ConfigError(
            f"hardware.devices={max(devices_per_job)}, but {_format_gpu_count(gpus)} visible here; use "
            f"hardware.devices={len(gpus)}"
        )
    if gpus:
        capacity = len(gpus) // min(devices_per_job)
    else:
        capacity = max(
            1,
            len(os.sched_getaffinity(0))
            // max(job_hardware["threads"] * job_hardware["devices"] for job_hardware in hardware),
        )
    requested_limits = [
        job_hardware["max_parallel_jobs"] for job_hardware in hardware if job_hardware["max_parallel_jobs"] != "auto"
    ]
    max_jobs = min(requested_limits) if requested_limits else capacity
    return (min(max_jobs, capacity) if gpus else max_jobs), gpus


def _check_single_node(hardware: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError where a job wants processes on machines that nothing here can start one on."""
    nodes = max(job_hardware["nodes"] for job_hardware in hardware)
    if nodes > 1:
        devices = max(job_hardware["devices"] for job_hardware in hardware)
        raise ConfigError(
            f"hardware.nodes={nodes}: jobs started here run on this machine alone; add hydra/launcher=slurm, or start "
            f"one job on every machine with torchrun --nnodes {nodes} --nproc_per_node {devices} -m lmm_forget.run …"
        )


def _format_gpu_count(gpus: Sequence[str]) -> str:
    return f"{len(gpus)} GPU is" if len(gpus) == 1 else f"{len(gpus)} GPUs are"


def list_visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use, from CUDA_VISIBLE_DEVICES or else the driver's own list."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [item.strip() for item in visible.split(",") if item.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(index) for index, line in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def build_child_environment(job: Job, gpus: Sequence[str], parent_environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job's process: no traces of a distributed launch, fixed threads, its own GPUs if any."""
    env = {
        key: value
        for key, value in parent_environment.items()
        if key not in DISTRIBUTED_VARIABLES and not key.startswith(DISTRIBUTED_VARIABLE_PREFIXES)
    }
    env.update(build_thread_environment(job.config["hardware"]["threads"]))
    env["PYTHONUNBUFFERED"] = "1"
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return env


@dataclass
class _ChildProcess:
    job: Job
    process: subprocess.Popen[bytes]
    gpus: list[str]
    log_offset: int


@dataclass
class ProcessPool:
    """Runs jobs as processes, at most `max_parallel` at once, each with GPUs of its own where `gpus` are given.

    A job has as many as its `hardware.devices`; one that wants more than are free waits for them, and so do those
    behind it. `grace_seconds` is how long a stopped child may take to save before its process group is killed.
    `pick_next(pending, running)` returns the index of the pending job to start next; `keep_alive` is called in every
    round. Must be used from the main thread: a child is stopped when the thread that started it ends.
    """

    max_parallel: int
    observer: JobObserver
    gpus: list[str] = field(default_factory=list)
    grace_seconds: float = SHUTDOWN_SECONDS + 5.0
    pick_next: Callable[[Sequence[Job], Sequence[Job]], int] = lambda waiting, running: 0
    keep_alive: Callable[[], None] = lambda: None
    _children: list[_ChildProcess] = field(default_factory=list)
    _signal_count: int = 0
    _next_job: Job | None = None

    def run_all(self, jobs: Sequence[Job]) -> list[JobOutcome] | None:
        """Run all jobs to their end, whether or not others fail; None where Ctrl-C, SIGTERM or SIGHUP ended them."""
        pending_jobs, free_gpus, outcomes = list(jobs), list(self.gpus), {}
        self._next_job = None
        previous = {
            number: signal.signal(number, self._count_signal)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            while pending_jobs or self._children:
                self._start_pending_jobs(pending_jobs, free_gpus)
                time.sleep(POLL_SECONDS)
                for child in [child for child in self._children if child.process.poll() is not None]:
                    self._children.remove(child)
                    free_gpus += child.gpus
                    outcome = outcomes[child.job.name] = self._read_outcome(child)
                    self.observer.on_job_ended(outcome)
                self.observer.on_tick()
                self.keep_alive()
                if self._signal_count:
                    return None
        finally:
            self._stop_children()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return [outcomes[job.name] for job in jobs]

    def _start_pending_jobs(self, pending_jobs: list[Job], free_gpus: list[str]) -> None:
        """Start as many of the pending jobs as there is room for, each with its GPUs out of `free_gpus`."""
        while pending_jobs and len(self._children) < self.max_parallel and not self._signal_count:
            if self._next_job is None:
                self._next_job = pending_jobs[self.pick_next(pending_jobs, [child.job for child in self._children])]
            job = self._next_job
            num_gpus = _count_job_gpus(job) if self.gpus else 0
            if num_gpus > len(free_gpus):
                return
            self._next_job = None
            pending_jobs.remove(job)
            self._start_job(job, [free_gpus.pop(0) for _ in range(num_gpus)])

    def _start_job(self, job: Job, gpus: list[str]) -> None:
        with add_path_to_os_errors(job.log_path), job.log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "lmm_forget.experiment.job", str(job.config_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=build_child_environment(job, gpus, os.environ),
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),
            )
            self._children.append(_ChildProcess(job, process, gpus, log.tell()))
        self.observer.on_job_started(job)

    def _read_outcome(self, child: _ChildProcess) -> JobOutcome:
        """Read how a job ended from its exit code and its last status."""
        exit_code, job = child.process.returncode, child.job
        _signal_process_group(child, signal.SIGKILL)  # whatever it left behind
        if exit_code == 0 and (job.folder / "results.json").exists():
            return JobOutcome(job, is_finished=True)
        status = read_job_status(job.folder)
        reported_error = status.get("error") if status.get("state") == "failed" else None
        if exit_code == 2 and reported_error:
            return JobOutcome(job, is_finished=False, cause=str(reported_error))
        cause = str(reported_error) if reported_error else describe_exit_code(exit_code, RESUME_HINT)
        if not reported_error:
            close_running_status(job.folder, "failed", cause)  # it could not write so itself
        return JobOutcome(job, is_finished=False, cause=cause, log_tail=read_log_tail(job.log_path, child.log_offset))

    def _count_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal_count += 1

    def _stop_children(self) -> None:
        """SIGTERM to all that still run, SIGKILL to those that do not end in time (at once on a second Ctrl-C)."""
        signals_before = self._signal_count
        for child in self._children:
            _signal_process_group(child, signal.SIGTERM)
        limit = time.monotonic() + self.grace_seconds
        while any(child.process.poll() is None for child in self._children):
            if time.monotonic() > limit or self._signal_count > signals_before:
                break
            time.sleep(POLL_SECONDS / 2)
        for child in self._children:
            _signal_process_group(child, signal.SIGKILL)
            child.process.wait()
            close_running_status(child.job.folder, "interrupted")
        self._children.clear()


def _count_job_gpus(job: Job) -> int:
    hardware = job.config["hardware"]
    return int(hardware["devices"]) if hardware["accelerator"] == "gpu" else 0


def _signal_process_group(child: _ChildProcess, signal_number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, signal_number)
