"""From resolved jobs to finished ones: prepare, run, watch, name the failures, draw the summary."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmm_forget.distributed.workers import SHUTDOWN_SECONDS
from lmm_forget.errors import ConfigError, DataError, LaunchError
from lmm_forget.launch.job_folders import Job, JobLocks, prepare_job_folders
from lmm_forget.launch.outcomes import DRY_RUN_FINISHED, SWEEP_STOPPED, JobOutcome, LaunchResult
from lmm_forget.launch.process_pool import ProcessPool, compute_parallel_capacity
from lmm_forget.launch.progress_display import ProgressDisplay
from lmm_forget.launch.sweep_plan import SweepPlan, is_dry_run, is_submit_only
from lmm_forget.metrics.interval_width import describe_interval_widths

GRACE_SECONDS = SHUTDOWN_SECONDS + 5.0
"""Seconds that a stopped job gets to save before it is killed."""
FILE_TASK_CLASSES = ("lmm_forget.tasks.jsonl.JsonlTask", "lmm_forget.tasks.llava.LlavaTask")
"""Tasks whose `path` is a file of samples, or one for each split."""


class JobsFailed(LaunchError):
    """Jobs were started and at least one of them has no result."""

    exit_code = 1


def run_jobs(
    jobs: Sequence[Job], grace_seconds: float = GRACE_SECONDS, on_accepted: Callable[[], None] = lambda: None
) -> LaunchResult:
    """Run every job to its end and return an outcome for each, in the order given; failures do not raise.

    Jobs that are finished already are not run again. The result ends early where only the plan was wanted, or after
    Ctrl-C or SIGTERM. Raises ConfigError or LaunchError before anything is started. A file is written, and
    `on_accepted` called, only when all is checked.
    """
    if is_submit_only(jobs[0].config):
        raise ConfigError("sweep.submit_only=true hands jobs to a scheduler; add hydra/launcher=slurm")
    plan = SweepPlan([*{job.name: job for job in jobs}.values()])
    if is_dry_run(jobs[0].config):
        print("\n".join([plan.format_plan_line(), *plan.format_recipe_lines()]))
        return DRY_RUN_FINISHED
    with JobLocks(heartbeat_seconds=None) as job_locks:  # the pool forks: it refreshes them itself
        pending_jobs, finished = prepare_job_folders(
            jobs, job_locks.acquire, input_reader=plan.reader, check_jobs=_check_jobs_can_run
        )
        on_accepted()
        outcomes = {job.name: JobOutcome(job, is_finished=True) for job in finished}
        if not pending_jobs:
            finished_text = f"all {len(finished)} jobs are" if len(finished) > 1 else f"{finished[0].name} is"
            print(f"{finished_text} finished already; nothing to run", file=sys.stderr)
        else:
            new_outcomes = _run_pending_jobs(plan, pending_jobs, finished, grace_seconds, job_locks)
            if new_outcomes is None:
                return SWEEP_STOPPED
            outcomes |= {outcome.job.name: outcome for outcome in new_outcomes}
    return LaunchResult(tuple(outcomes[job.name] for job in jobs))


def _run_pending_jobs(
    plan: SweepPlan,
    pending_jobs: Sequence[Job],
    finished: Sequence[Job],
    grace_seconds: float,
    job_locks: JobLocks,
) -> list[JobOutcome] | None:
    """Run the pending jobs and show their progress; returns their outcomes, None after Ctrl-C or SIGTERM."""
    print_sweep_plan(plan, pending_jobs)
    if len(plan.jobs) > 1:
        where = pending_jobs[0].folder.parent
        print(f"lmm-forget status {where} shows how far it is, also from elsewhere", file=sys.stderr)
    size, gpus = compute_parallel_capacity([job.config for job in pending_jobs])
    with ProgressDisplay(pending_jobs, finished) as display:
        pool = ProcessPool(size, display, gpus, grace_seconds, plan.pick_next_job, job_locks.refresh_leases)
        outcomes = pool.run_all(pending_jobs)
    if outcomes is not None:
        print_job_warnings([outcome.job for outcome in outcomes if outcome.is_finished])
    return outcomes


def _check_jobs_can_run(jobs: Sequence[Job]) -> None:
    """Raise ConfigError or DataError where this machine cannot hold one of the jobs to run, or has not its files."""
    compute_parallel_capacity([job.config for job in jobs])
    check_job_inputs(jobs)


def check_job_inputs(jobs: Sequence[Job]) -> None:
    """Raise LmmForgetError for a model or a task that a job would not find, before anything is written for it."""
    checked_nodes: set[str] = set()
    for job in jobs:
        model, tasks = job.config["model"], job.config["tasks"]
        for node in (model, *tasks.values()):
            if (text := repr(node)) not in checked_nodes:
                checked_nodes.add(text)
                _check_model_files(model) if node is model else _check_task_files(node)


def _check_model_files(model: Mapping[str, Any]) -> None:
    """Raise ConfigError for a model that a job would not find."""
    path = model.get("path")
    if not path and not model.get("hub_id"):
        raise ConfigError(f"model {model.get('name')!r} has neither `path` nor `hub_id`; set model.path=FOLDER")
    if path and not str(path).startswith("package:"):
        folder = Path(os.path.expanduser(str(path)))
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model.path={path} is not a model folder: it has no config.json")


def _check_task_files(task: Mapping[str, Any]) -> None:
    """Raise LmmForgetError for a task that cannot be built, or whose file of samples is not there."""
    from lmm_forget.tasks.task_loading import build_task

    build_task(task)
    if task.get("_target_") not in FILE_TASK_CLASSES:
        return
    path = task.get("path")
    for file in path.values() if isinstance(path, Mapping) else [path]:
        if isinstance(file, str) and not Path(file).expanduser().is_file():
            problem = "is a folder, not a file" if Path(file).expanduser().is_dir() else "is missing"
            raise DataError(f"task {task['name']}: {file} {problem}; a path starts at the working directory")


def print_sweep_plan(plan: SweepPlan, pending_jobs: Sequence[Job]) -> None:
    """Print what is about to be done, and what the suite can and cannot tell apart."""
    if len(plan.jobs) > 1 and pending_jobs:
        print(plan.format_plan_line(), file=sys.stderr, flush=True)
    for line in dict.fromkeys(filter(None, (describe_interval_widths(job.config) for job in pending_jobs))):
        print(line, file=sys.stderr)


def print_job_warnings(jobs: Sequence[Job]) -> None:
    """Print the warnings of finished jobs (results.json, job.warnings), equal ones of several jobs once."""
    counts_by_text: dict[str, int] = {}
    for job in jobs:
        for warning in ((job.read_results() or {}).get("job") or {}).get("warnings") or []:
            text = str(warning).replace(str(job.folder), str(job.folder.parent / ("*" if len(jobs) > 1 else job.name)))
            counts_by_text[text] = counts_by_text.get(text, 0) + 1
    for text, count in counts_by_text.items():
        many = f" ({count} jobs)" if count > 1 else ""
        print(f"lmm-forget: note: {text}{many}", file=sys.stderr)


def print_job_failures(outcomes: Sequence[JobOutcome]) -> JobsFailed | None:
    """Print each failed job's cause and last log lines to stderr; returns the one-line error that sums them up."""
    failed = list({outcome.job.name: outcome for outcome in outcomes if not outcome.is_finished}.values())
    if not failed:
        return None
    count = len({outcome.job.name for outcome in outcomes})
    if count == 1:
        _print_log_tail(failed[0])
        return JobsFailed(f"{failed[0].job.name}: {failed[0].cause}")
    for outcome in failed:
        print(f"{outcome.job.name} failed: {outcome.cause}", file=sys.stderr)
        _print_log_tail(outcome)
    names = ", ".join(outcome.job.name for outcome in failed)
    return JobsFailed(f"{len(failed)} of {count} jobs failed: {names}; the same command runs only what is missing")


def write_and_print_summary(sweep_dir: Path, already_reported: Sequence[JobOutcome] = ()) -> None:
    """Draw the sweep's summary files from its records, and print its table on stdout.

    Jobs of the folder without results are listed below the table, except those in `already_reported`.
    """
    if not any(sweep_dir.glob("*/results.json")):
        return
    from rich.console import Console

    from lmm_forget.report import sweep_report, sweep_summary, terminal_table

    report = sweep_report.load_sweep_report(sweep_dir)
    sweep_summary.write_sweep_summary(report)
    reported_names = {outcome.job.name for outcome in already_reported}
    terminal_table.print_sweep_table(
        report.rows,
        report.settings,
        Console(),
        notes=report.notes,
        unfinished=[job for job in report.sweep.unfinished if job.job not in reported_names],
    )
    print(f"summary: {sweep_dir / 'summary.html'}")
    for name, results in report.sweep.results.items():
        for repair in results["job"].get("repairs", ()):
            print(f"{name}: {repair}", file=sys.stderr)


def _print_log_tail(outcome: JobOutcome) -> None:
    if outcome.log_tail:
        print(f"  last lines of {outcome.job.log_path}:", file=sys.stderr)
        for line in outcome.log_tail:
            print(f"  | {line}", file=sys.stderr)
