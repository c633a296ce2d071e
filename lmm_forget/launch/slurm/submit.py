"""Jobs put into Slurm's queue, with submitit's executor: its parameters, its batch script, its arrays.

submitit's own entry point is not used. It runs a pickled function under signal handlers of its own, which leave the
process inside the handler and put the job back with the pickled arguments; a job here is a job.yaml that anybody can
read, its own handlers stop it at a step boundary (lmm_forget.distributed.stop_signals), and it goes on from the
store. So the batch script runs `python -m lmm_forget.launch.slurm.rank_task`, and no pickle is written.
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

from lmm_forget.config.job_names import list_config_differences
from lmm_forget.errors import ConfigError, LaunchError
from lmm_forget.experiment.job import compute_world_size, read_job_config
from lmm_forget.launch.job_folders import Job
from lmm_forget.launch.process_pool import DISTRIBUTED_VARIABLES
from lmm_forget.launch.slurm import squeue
from lmm_forget.launch.slurm.job_record import SlurmJobRecord, SlurmSubmission, record_slurm_state
from lmm_forget.launch.slurm.settings import SlurmSettings

SUBMISSION_DIR = ".slurm"
"""Below a sweep's folder: lists, batch scripts and what the batch scripts printed."""
ARRAY_KEYS = ("devices", "nodes", "accelerator", "threads", "num_workers")
"""Fields of `hardware` that decide what is requested from Slurm; jobs that agree in them become one array."""
MAX_ARRAY_SIZE = 1000
"""Jobs of one array; Slurm's own default limit (MaxArraySize) is 1001."""


def find_queued_jobs(jobs: Sequence[Job]) -> dict[str, str]:
    """Names of the jobs that Slurm has already, waiting or running, with their Slurm ids.

    Raises ConfigError where such a job was submitted with another configuration, SlurmUnreachable without an answer.
    """
    slurm_records = {
        job.name: slurm_record for job in jobs if (slurm_record := SlurmJobRecord.read(job.folder)) and slurm_record.id
    }
    slurm_jobs = squeue.query_jobs(slurm_record.id for slurm_record in slurm_records.values() if slurm_record.id)
    slurm_ids: dict[str, str] = {}
    for job in jobs:
        slurm_record = slurm_records.get(job.name)
        if slurm_record is None or slurm_record.id is None:
            continue
        if slurm_record.id not in slurm_jobs or slurm_jobs[slurm_record.id].has_ended:
            record_slurm_state(
                job.folder,
                slurm_jobs[slurm_record.id].state if slurm_record.id in slurm_jobs else slurm_record.ended or "GONE",
            )
            continue
        changed = (
            list_config_differences(read_job_config(job.config_path), job.config) if job.config_path.exists() else []
        )
        if changed:
            raise ConfigError(
                f"{job.name} is in Slurm's queue as job {slurm_record.id} with another configuration "
                f"({'; '.join(changed[:4])}); wait for it, or scancel {slurm_record.id} first"
            )
        slurm_ids[job.name] = slurm_record.id
    return slurm_ids


def check_slurm_settings(jobs: Sequence[Job], settings: SlurmSettings) -> None:
    """Raise ConfigError, before anything is written, where these settings cannot be asked of Slurm for these jobs."""
    for job in jobs:
        settings.build_submitit_parameters(job.config["hardware"], str(job.config["name"]))


def submit_jobs(jobs: Sequence[Job], settings: SlurmSettings) -> dict[str, str]:
    """Submit every job, those with equal requests as one array; returns name -> Slurm id. Raises LaunchError."""
    jobs_by_request: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        jobs_by_request.setdefault(tuple(job.config["hardware"][key] for key in ARRAY_KEYS), []).append(job)
    ids: dict[str, str] = {}
    for group in jobs_by_request.values():
        for start in range(0, len(group), MAX_ARRAY_SIZE):
            ids.update(_submit_array(group[start : start + MAX_ARRAY_SIZE], settings))
    return ids


def _submit_array(jobs: Sequence[Job], settings: SlurmSettings) -> dict[str, str]:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder = jobs[0].folder.parent.resolve() / SUBMISSION_DIR
    folder.mkdir(parents=True, exist_ok=True)
    submission_name = secrets.token_hex(6)
    path = folder / f"{submission_name}.json"
    config = jobs[0].config
    cwd = os.getcwd()
    SlurmSubmission(
        submission_name, cwd, [str(job.config_path) for job in jobs], settings.max_requeues, settings.signal
    ).write(path)
    for job in jobs:  # before Slurm has them: a task that starts at once finds itself named
        SlurmJobRecord(submission_name).write(job.folder)
    python = settings.python or shlex.quote(sys.executable)
    quoted_path = shlex.quote(str(path))
    try:
        executor = SlurmExecutor(folder)
        executor.update_parameters(**settings.build_submitit_parameters(config["hardware"], str(config["name"])))
        if len(jobs) > 1:
            executor.parameters["map_count"] = len(jobs)
        executor.parameters["setup"] = [
            *settings.setup,
            *(
                [f'eval "$({python} -m lmm_forget.launch.slurm.batch_hooks begin {quoted_path})"']
                if compute_world_size(config) > 1
                else []
            ),
        ]
        executor.parameters["teardown"] = [
            f'{python} -m lmm_forget.launch.slurm.batch_hooks end {quoted_path} "$?"',
        ]
        with redirect_stderr(StringIO()), _clean_environment():  # sbatch's own message is part of the error
            submitted_job = executor._submit_command(f"{python} -u -m lmm_forget.launch.slurm.rank_task {quoted_path}")
    except (FailedJobError, FailedSubmissionError, RuntimeError, OSError) as error:
        raise LaunchError(f"Slurm did not take the jobs: {' '.join(str(error).split())}") from error
    base_id = str(submitted_job.job_id)
    ids = {}
    for index, job in enumerate(jobs):
        ids[job.name] = f"{base_id}_{index}" if len(jobs) > 1 else base_id
        output = folder / f"{ids[job.name]}_0_log.out"
        replace(SlurmJobRecord(submission_name), id=ids[job.name], output=os.path.relpath(output, cwd)).write(
            job.folder
        )
    return ids


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Without the traces of a Slurm job or a distributed launch that this command itself may be part of."""
    saved_environment = dict(os.environ)
    for key in saved_environment:
        if key in DISTRIBUTED_VARIABLES or (key.startswith(("SLURM_", "TORCHELASTIC_")) and key != "SLURM_CONF"):
            del os.environ[key]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved_environment)
