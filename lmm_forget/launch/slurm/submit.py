"""Jobs put into Slurm's queue, with submitit's executor: its parameters, its batch script, its arrays.

submitit's own entry point is not used. It runs a pickled function under signal handlers of its own, which leave the
process inside the handler and put the job back with the pickled arguments; a job here is a job.yaml that anybody can
read, its own handlers stop it at a step boundary (lmm_forget.distributed.stop_signals), and it goes on from the
store. So the batch script runs `python -m lmm_forget.launch.slurm.task`, and no pickle is written.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from io import StringIO
from typing import Any

from lmm_forget.config.naming import differences
from lmm_forget.errors import ConfigError, LaunchError
from lmm_forget.experiment.job import read_config, world_size
from lmm_forget.launch.jobs import Job
from lmm_forget.launch.processes import DISTRIBUTED
from lmm_forget.launch.slurm import queue
from lmm_forget.launch.slurm.settings import Settings
from lmm_forget.launch.slurm.ticket import Submission, Ticket, close_ticket

FOLDER = ".slurm"
"""Below a sweep's folder: lists, batch scripts and what the batch scripts printed."""
ALIKE = ("devices", "nodes", "accelerator", "threads", "workers")
"""Fields of `hardware` that decide what is asked of Slurm; jobs that agree in them become one array."""
MOST = 1000
"""Jobs of one array; Slurm's own default limit (MaxArraySize) is 1001."""


def queued(jobs: Sequence[Job]) -> dict[str, str]:
    """Names of the jobs that Slurm has already, waiting or running, with their Slurm ids.

    Raises ConfigError where such a job was submitted with another configuration, Unreachable if Slurm is silent.
    """
    tickets = {job.name: ticket for job in jobs if (ticket := Ticket.read(job.folder)) and ticket.id}
    seen = queue.look(ticket.id for ticket in tickets.values() if ticket.id)
    found: dict[str, str] = {}
    for job in jobs:
        ticket = tickets.get(job.name)
        if ticket is None or ticket.id is None:
            continue
        if ticket.id not in seen or seen[ticket.id].ended:
            close_ticket(job.folder, seen[ticket.id].state if ticket.id in seen else ticket.ended or "GONE")
            continue
        changed = differences(read_config(job.file), job.config) if job.file.exists() else []
        if changed:
            raise ConfigError(
                f"{job.name} is in Slurm's queue as job {ticket.id} with another configuration "
                f"({'; '.join(changed[:4])}); wait for it, or scancel {ticket.id} first"
            )
        found[job.name] = ticket.id
    return found


def check_request(jobs: Sequence[Job], settings: Settings) -> None:
    """Raise ConfigError, before anything is written, where these settings cannot be asked of Slurm for these jobs."""
    for job in jobs:
        settings.parameters(job.config["hardware"], str(job.config["name"]))


def submit(jobs: Sequence[Job], settings: Settings) -> dict[str, str]:
    """Submit every job, those that ask for the same as one array; returns name -> Slurm id. Raises LaunchError."""
    alike: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        alike.setdefault(tuple(job.config["hardware"][key] for key in ALIKE), []).append(job)
    ids: dict[str, str] = {}
    for group in alike.values():
        for start in range(0, len(group), MOST):
            ids.update(_submit(group[start : start + MOST], settings))
    return ids


def _submit(jobs: Sequence[Job], settings: Settings) -> dict[str, str]:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder = jobs[0].folder.parent.resolve() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    name = secrets.token_hex(6)
    path = folder / f"{name}.json"
    config = jobs[0].config
    cwd = os.getcwd()
    Submission(name, cwd, [str(job.file) for job in jobs], settings.max_requeues, settings.signal).write(path)
    for job in jobs:  # before Slurm has them: a task that starts at once finds itself named
        Ticket(name).write(job.folder)
    python = settings.python or shlex.quote(sys.executable)
    listed = shlex.quote(str(path))
    try:
        executor = SlurmExecutor(folder)
        executor.update_parameters(**settings.parameters(config["hardware"], str(config["name"])))
        if len(jobs) > 1:
            executor.parameters["map_count"] = len(jobs)
        executor.parameters["setup"] = [
            *settings.setup,
            *(
                [f'eval "$({python} -m lmm_forget.launch.slurm.batch begin {listed})"']
                if world_size(config) > 1
                else []
            ),
        ]
        executor.parameters["teardown"] = [
            f'{python} -m lmm_forget.launch.slurm.batch end {listed} "$?"',
        ]
        with redirect_stderr(StringIO()), _plain_environment():  # what sbatch complains of is raised, too
            made = executor._submit_command(f"{python} -u -m lmm_forget.launch.slurm.task {listed}")
    except (FailedJobError, FailedSubmissionError, RuntimeError, OSError) as error:
        raise LaunchError(f"Slurm did not take the jobs: {' '.join(str(error).split())}") from error
    base = str(made.job_id)
    ids = {}
    for index, job in enumerate(jobs):
        ids[job.name] = f"{base}_{index}" if len(jobs) > 1 else base
        output = folder / f"{ids[job.name]}_0_log.out"
        replace(Ticket(name), id=ids[job.name], output=os.path.relpath(output, cwd)).write(job.folder)
    return ids


@contextmanager
def _plain_environment() -> Iterator[None]:
    """Without the traces of a Slurm job or a distributed launch that this command itself may be part of."""
    kept = dict(os.environ)
    for key in kept:
        if key in DISTRIBUTED or (key.startswith(("SLURM_", "TORCHELASTIC_")) and key != "SLURM_CONF"):
            del os.environ[key]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
