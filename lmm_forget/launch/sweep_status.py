"""What every job of a sweep is doing now, from its files and Slurm's queue; nothing is changed by looking."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmm_forget.distributed.heartbeat import read_job_status
from lmm_forget.distributed.process_id import ProcessId
from lmm_forget.errors import LmmForgetError
from lmm_forget.experiment.job import read_job_config
from lmm_forget.launch.job_folders import Job
from lmm_forget.launch.progress_display import format_time_left
from lmm_forget.launch.slurm import squeue
from lmm_forget.launch.slurm.job_record import SlurmJobRecord
from lmm_forget.launch.sweep_plan import SweepPlan
from lmm_forget.report.job_results import find_job_folders

JOB_STATES = ("running", "queued", "waiting", "done", "interrupted", "failed", "lost")
HEARTBEAT_TIMEOUT_SECONDS = 120.0
"""Seconds without a heartbeat after which a job on another machine is called lost; clocks may differ a little."""
INTERRUPTED_SLURM_STATES = ("CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE")


def collect_sweep_status(sweep_dir: Path) -> dict[str, Any]:
    """`folder`, `counts` by state, `slurm` (null, or why its queue cannot be seen) and one entry per job in `jobs`.

    Raises DataError where there is no job.
    """
    job_dirs = find_job_folders(sweep_dir)
    slurm_records = {path: SlurmJobRecord.read(path) for path in job_dirs}
    slurm_jobs, slurm_error = _query_slurm_jobs(slurm_records.values())
    jobs = [_collect_job_status(path, slurm_records[path], slurm_jobs) for path in job_dirs]
    counts = Counter(job["state"] for job in jobs)
    return {
        "folder": str(sweep_dir),
        "counts": {state: counts[state] for state in JOB_STATES if counts[state]},
        "slurm": slurm_error,
        "jobs": jobs,
    }


def _query_slurm_jobs(slurm_records: Any) -> tuple[dict[str, squeue.SlurmJobInfo], str | None]:
    """What Slurm knows, and why its queue cannot be seen, if so; nothing where no job was ever submitted."""
    slurm_ids = [record.id for record in slurm_records if record is not None and record.id]
    if not slurm_ids:
        return {}, None
    try:
        return squeue.query_jobs(slurm_ids), None
    except squeue.SlurmUnreachable as error:
        return {}, str(error)


def _collect_job_status(
    job_dir: Path, slurm_record: SlurmJobRecord | None, slurm_jobs: Mapping[str, squeue.SlurmJobInfo]
) -> dict[str, Any]:
    status = read_job_status(job_dir)
    slurm_job = slurm_jobs.get(slurm_record.id or "") if slurm_record else None
    state, error = _determine_job_state(job_dir, status, slurm_record, slurm_job)
    is_running = state == "running"
    stages, stages_left = _count_stages(job_dir, state)
    log_path = job_dir / "job.log"
    if slurm_record and slurm_record.output and not log_path.exists() and Path(slurm_record.output).exists():
        log_path = Path(slurm_record.output)
    return {
        "job": job_dir.name,
        "state": state,
        "phase": status.get("phase") if is_running else None,
        "done": status.get("done") if is_running else None,
        "total": status.get("total") if is_running else None,
        "unit": status.get("unit") if is_running else None,
        "rate": status.get("rate") if is_running else None,
        "time_left": (format_time_left(status) or None) if is_running else None,
        "info": status.get("info") or {} if is_running else {},
        "host": status.get("host") if is_running else None,
        "updated": status.get("updated"),
        "stages": stages,
        "stages_left": stages_left,
        "slurm_id": slurm_record.id if slurm_record else None,
        "slurm_state": slurm_job.state if slurm_job else (slurm_record.ended if slurm_record else None),
        "reason": slurm_job.reason or None
        if slurm_job and not slurm_job.is_running and not slurm_job.has_ended
        else None,
        "error": error,
        "log": str(log_path) if log_path.exists() else None,
    }


def _determine_job_state(
    job_dir: Path,
    status: Mapping[str, Any],
    slurm_record: SlurmJobRecord | None,
    slurm_job: squeue.SlurmJobInfo | None,
) -> tuple[str, str | None]:
    """A job's state and the line that explains it: from its results, then Slurm's queue, then status.json."""
    if (job_dir / "results.json").exists():
        damage = _describe_json_damage(job_dir / "results.json")
        return ("failed", damage) if damage else ("done", None)
    reported_state, error = str(status.get("state") or ""), status.get("error")
    if slurm_job is not None and not slurm_job.has_ended:
        return ("running" if slurm_job.is_running and reported_state == "running" else "queued"), None
    if reported_state == "failed":
        return "failed", str(error or "it failed")
    slurm_end_state = slurm_job.state if slurm_job else (slurm_record.ended if slurm_record else None)
    if slurm_end_state in INTERRUPTED_SLURM_STATES:
        return "interrupted", f"Slurm: {slurm_end_state.lower().replace('_', ' ')}"
    if reported_state == "running":
        return ("running", None) if _is_process_alive(status) else ("lost", "its process is gone, or was not heard of")
    if slurm_end_state == "OUT_OF_MEMORY" or (slurm_end_state == "FAILED" and not reported_state):
        return "failed", f"Slurm: {slurm_end_state.lower().replace('_', ' ')}"
    return (reported_state, error) if reported_state else ("waiting", None)


def _describe_json_damage(path: Path) -> str | None:
    """Why a results.json is none; None where it is JSON (the report looks closer)."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{path} is damaged ({' '.join(str(error).split())}); delete it and run the same command again"
    return None


def _is_process_alive(status: Mapping[str, Any]) -> bool:
    process_id = ProcessId.parse(status)
    alive = process_id.is_alive() if process_id is not None else None
    if alive is not None:
        return alive
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(str(status.get("updated")))
    except (TypeError, ValueError):
        return False
    return age.total_seconds() < HEARTBEAT_TIMEOUT_SECONDS


def _count_stages(job_dir: Path, state: str) -> tuple[int | None, int | None]:
    """How many stages a job has, and how many of them are not in its store yet."""
    try:
        config = read_job_config(job_dir / "job.yaml")
        job = Job(job_dir.name, job_dir, config)
        plan = SweepPlan([job])
        total = len(plan.path_keys_by_job[job.name])
        num_missing = (
            0
            if state == "done"
            else sum(not plan.is_stage_stored(job, path) for path in plan.path_keys_by_job[job.name])
        )
    except (LmmForgetError, KeyError, TypeError):  # a folder without a job.yaml, or of another version
        return None, None
    return total, num_missing
