"""From resolved jobs to finished ones: prepare, run, watch, name the failures, draw the summary."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmm_forget.distributed.workers import SHUTDOWN
from lmm_forget.errors import ConfigError, DataError, LaunchError
from lmm_forget.launch.jobs import Folders, Job, prepare
from lmm_forget.launch.live import View
from lmm_forget.launch.planning import Planned, SweepPlan, wants_plan_only, wants_submitting_only
from lmm_forget.launch.processes import Outcome, Pool, side_by_side
from lmm_forget.metrics.resolution import resolution

GRACE = SHUTDOWN + 5.0
"""Seconds that a stopped job gets to save before it is killed."""
FROM_FILES = ("lmm_forget.tasks.jsonl.JsonlTask", "lmm_forget.tasks.llava.LlavaTask")
"""Tasks whose `path` is a file of samples, or one for each split."""


class JobsFailed(LaunchError):
    """Jobs were started and at least one of them has no result."""

    exit_code = 1


def run_jobs(
    jobs: Sequence[Job], grace: float = GRACE, accepted: Callable[[], None] = lambda: None
) -> list[Outcome]:
    """Bring every job to its end and return an outcome for each, in the order given; failures do not raise.

    Jobs that are finished already are not run again. Raises ConfigError or LaunchError before anything is started,
    Stopped after Ctrl-C or SIGTERM, Planned when only the plan was wanted. A file is written, and `accepted` called,
    only when all is checked.
    """
    if wants_submitting_only(jobs[0].config):
        raise ConfigError("sweep.submit_only=true hands jobs to a scheduler; add hydra/launcher=slurm")
    plan = SweepPlan([*{job.name: job for job in jobs}.values()])
    if wants_plan_only(jobs[0].config):
        print("\n".join([plan.line(), *plan.by_recipe()]))
        raise Planned
    with Folders(beat=None) as folders:  # the pool forks: it refreshes them itself
        waiting, finished = prepare(jobs, folders.hold, reader=plan.reader, check=_check_machine)
        accepted()
        outcomes = {job.name: Outcome(job, finished=True) for job in finished}
        if not waiting:
            done = f"all {len(finished)} jobs are" if len(finished) > 1 else f"{finished[0].name} is"
            print(f"{done} finished already; nothing to run", file=sys.stderr)
        else:
            _run(plan, waiting, finished, outcomes, grace, folders)
    return [outcomes[job.name] for job in jobs]


def _run(
    plan: SweepPlan,
    waiting: Sequence[Job],
    finished: Sequence[Job],
    outcomes: dict[str, Outcome],
    grace: float,
    folders: Folders,
) -> None:
    """Run what is waiting, with a view of it; fills `outcomes`."""
    tell_before(plan, waiting)
    if len(plan.jobs) > 1:
        where = waiting[0].folder.parent
        print(f"lmm-forget status {where} shows how far it is, also from elsewhere", file=sys.stderr)
    size, gpus = side_by_side([job.config for job in waiting])
    with View(waiting, finished) as view:
        for outcome in Pool(size, view, gpus, grace, plan.pick, folders.refresh).run(waiting):
            outcomes[outcome.job.name] = outcome
    tell_notices([job for job in waiting if outcomes[job.name].finished])


def _check_machine(jobs: Sequence[Job]) -> None:
    """Raise ConfigError or DataError where this machine cannot hold one of the jobs to run, or has not its files."""
    side_by_side([job.config for job in jobs])
    check_inputs(jobs)


def check_inputs(jobs: Sequence[Job]) -> None:
    """Raise LmmForgetError for a model or a task that a job would not find, before anything is written for it."""
    seen: set[str] = set()
    for job in jobs:
        model, tasks = job.config["model"], job.config["tasks"]
        for what in (model, *tasks.values()):
            if (text := repr(what)) not in seen:
                seen.add(text)
                _check_model(model) if what is model else _check_task(what)


def _check_model(model: Mapping[str, Any]) -> None:
    """Raise ConfigError for a model that a job would not find."""
    path = model.get("path")
    if not path and not model.get("hub_id"):
        raise ConfigError(
            f"model {model.get('name')!r} has neither `path` nor `hub_id`; set model.path=FOLDER"
        )
    if path and not str(path).startswith("package:"):
        folder = Path(os.path.expanduser(str(path)))
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model.path={path} is not a model folder: it has no config.json")


def _check_task(task: Mapping[str, Any]) -> None:
    """Raise LmmForgetError for a task that cannot be built, or whose file of samples is not there."""
    from lmm_forget.tasks.loading import build_task

    build_task(task)
    if task.get("_target_") not in FROM_FILES:
        return
    path = task.get("path")
    for file in path.values() if isinstance(path, Mapping) else [path]:
        if isinstance(file, str) and not Path(file).expanduser().is_file():
            what = "is a folder, not a file" if Path(file).expanduser().is_dir() else "is missing"
            raise DataError(f"task {task['name']}: {file} {what}; a path starts at the working directory")


def tell_before(plan: SweepPlan, waiting: Sequence[Job]) -> None:
    """Print what is about to be done, and what the suite can and cannot tell apart."""
    if len(plan.jobs) > 1 and waiting:
        print(plan.line(), file=sys.stderr, flush=True)
    for line in dict.fromkeys(filter(None, (resolution(job.config) for job in waiting))):
        print(line, file=sys.stderr)


def tell_notices(jobs: Sequence[Job]) -> None:
    """Print what finished jobs want people to know (results.json, job.notices), once for all that say the same."""
    said: dict[str, int] = {}
    for job in jobs:
        for notice in ((job.results() or {}).get("job") or {}).get("notices") or []:
            text = str(notice).replace(
                str(job.folder), str(job.folder.parent / ("*" if len(jobs) > 1 else job.name))
            )
            said[text] = said.get(text, 0) + 1
    for text, count in said.items():
        many = f" ({count} jobs)" if count > 1 else ""
        print(f"lmm-forget: note: {text}{many}", file=sys.stderr)


def complain(outcomes: Sequence[Outcome]) -> JobsFailed | None:
    """Print each failed job's cause and last log lines to stderr; returns the one-line error that sums them up."""
    failed = list({outcome.job.name: outcome for outcome in outcomes if not outcome.finished}.values())
    if not failed:
        return None
    count = len({outcome.job.name for outcome in outcomes})
    if count == 1:
        _print_tail(failed[0])
        return JobsFailed(f"{failed[0].job.name}: {failed[0].cause}")
    for outcome in failed:
        print(f"{outcome.job.name} failed: {outcome.cause}", file=sys.stderr)
        _print_tail(outcome)
    names = ", ".join(outcome.job.name for outcome in failed)
    return JobsFailed(
        f"{len(failed)} of {count} jobs failed: {names}; the same command runs only what is missing"
    )


def show_summary(folder: Path, named: Sequence[Outcome] = ()) -> None:
    """Draw the sweep's summary files from its records, and print its table on stdout.

    Jobs of the folder without results are listed below the table, except those in `named`.
    """
    if not any(folder.glob("*/results.json")):
        return
    from rich.console import Console

    from lmm_forget.report import load, rows, suites, summary, table

    content = summary.summarize(folder)
    sweep = suites.shared_suite(load.load_sweep(folder))
    known = {outcome.job.name for outcome in named}
    table.render(
        rows.sweep_rows(sweep.results.values()),
        Console(),
        notes=content["notes"],
        unfinished=[job for job in sweep.unfinished if job.job not in known],
    )
    print(f"summary: {folder / 'summary.html'}")
    for name, results in sweep.results.items():
        for repair in results["job"].get("repairs", ()):
            print(f"{name}: {repair}", file=sys.stderr)


def _print_tail(outcome: Outcome) -> None:
    if outcome.log_tail:
        print(f"  last lines of {outcome.job.log}:", file=sys.stderr)
        for line in outcome.log_tail:
            print(f"  | {line}", file=sys.stderr)
