"""`lmm-forget status multirun/<name>`: every job of a sweep, now, from its files and Slurm's queue.

It changes nothing, needs no model library, and works while jobs run and long after, wherever the folder can be seen.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lmm_forget.cli.parser import one_folder, run_command, take_format
from lmm_forget.distributed.heartbeat import read_status
from lmm_forget.distributed.process_id import ProcessId
from lmm_forget.errors import LmmForgetError
from lmm_forget.experiment.job import read_config
from lmm_forget.launch.jobs import Job
from lmm_forget.launch.live import time_left
from lmm_forget.launch.planning import SweepPlan
from lmm_forget.launch.slurm import queue
from lmm_forget.launch.slurm.ticket import Ticket
from lmm_forget.report.load import job_folders

HELP = """usage: lmm-forget status FOLDER [format=table|json]

Shows every job of multirun/<name> (or the one job multirun/<name>/<job>): its state, what it is doing, how fast and
how long still, how many of its stages are done, its Slurm job and why that waits, where its log is, and the last error.

states: done, running, queued (in Slurm's queue), waiting (nobody has started it), interrupted (the same command goes
on where it ended), failed, lost (it says running, but nobody can see it run)

exit codes: 0 shown, 2 there is no such folder or no job in it
"""
NAME_WIDTH = 32
"""Characters of a job's name that stay on one line whatever the terminal's width."""
STATES = ("running", "queued", "waiting", "done", "interrupted", "failed", "lost")
SILENT = 120.0
"""Seconds without a heartbeat after which a job on another machine is called lost; clocks may differ a little."""
STOPPED_BY_SLURM = ("CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (2 for a mistake, told in one line on stderr)."""
    return run_command(_status, arguments, HELP)


def _status(words: Sequence[str]) -> None:
    form, rest = take_format(words)
    found = status_of(one_folder(rest, "status"))
    if form == "json":
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(found, Console(highlight=False))


def status_of(folder: Path) -> dict[str, Any]:
    """`folder`, `counts` by state, `slurm` (null, or why its queue cannot be seen) and one entry per job in `jobs`.

    Raises DataError where there is no job.
    """
    folders = job_folders(folder)
    tickets = {path: Ticket.read(path) for path in folders}
    seen, trouble = _look(tickets.values())
    jobs = [_job(path, tickets[path], seen) for path in folders]
    counts = Counter(job["state"] for job in jobs)
    return {
        "folder": str(folder),
        "counts": {state: counts[state] for state in STATES if counts[state]},
        "slurm": trouble,
        "jobs": jobs,
    }


def _look(tickets: Any) -> tuple[dict[str, queue.Seen], str | None]:
    """What Slurm knows; where it cannot be asked, why (nothing to say where no job was ever submitted)."""
    ids = [ticket.id for ticket in tickets if ticket is not None and ticket.id]
    if not ids:
        return {}, None
    try:
        return queue.look(ids), None
    except queue.Unreachable as error:
        return {}, str(error)


def _job(folder: Path, ticket: Ticket | None, seen: Mapping[str, queue.Seen]) -> dict[str, Any]:
    status = read_status(folder)
    there = seen.get(ticket.id or "") if ticket else None
    state, error = _state(folder, status, ticket, there)
    alive = state == "running"
    stages, left = _stages(folder, state)
    log = folder / "job.log"
    if ticket and ticket.output and not log.exists() and Path(ticket.output).exists():
        log = Path(ticket.output)
    return {
        "job": folder.name,
        "state": state,
        "phase": status.get("phase") if alive else None,
        "done": status.get("done") if alive else None,
        "total": status.get("total") if alive else None,
        "unit": status.get("unit") if alive else None,
        "rate": status.get("rate") if alive else None,
        "time_left": (time_left(status) or None) if alive else None,
        "info": status.get("info") or {} if alive else {},
        "host": status.get("host") if alive else None,
        "updated": status.get("updated"),
        "stages": stages,
        "stages_left": left,
        "slurm_id": ticket.id if ticket else None,
        "slurm_state": there.state if there else (ticket.ended if ticket else None),
        "reason": there.reason or None if there and not there.running and not there.ended else None,
        "error": error,
        "log": str(log) if log.exists() else None,
    }


def _state(
    folder: Path, status: Mapping[str, Any], ticket: Ticket | None, there: queue.Seen | None
) -> tuple[str, str | None]:
    """A job's state and the line that explains it. Results are results; then the queue; then the job's own word."""
    if (folder / "results.json").exists():
        broken = _unreadable(folder / "results.json")
        return ("failed", broken) if broken else ("done", None)
    said, error = str(status.get("state") or ""), status.get("error")
    if there is not None and not there.ended:
        return ("running" if there.running and said == "running" else "queued"), None
    if said == "failed":
        return "failed", str(error or "it failed")
    ended = there.state if there else (ticket.ended if ticket else None)
    if ended in STOPPED_BY_SLURM:
        return "interrupted", f"Slurm: {ended.lower().replace('_', ' ')}"
    if said == "running":
        return ("running", None) if _alive(status) else ("lost", "its process is gone, or was not heard of")
    if ended == "OUT_OF_MEMORY" or (ended == "FAILED" and not said):
        return "failed", f"Slurm: {ended.lower().replace('_', ' ')}"
    return (said, error) if said else ("waiting", None)


def _unreadable(path: Path) -> str | None:
    """Why a results.json is none; None where it is JSON (the report looks closer)."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{path} is damaged ({' '.join(str(error).split())}); delete it and run the same command again"
    return None


def _alive(status: Mapping[str, Any]) -> bool:
    holder = ProcessId.parse(status)
    alive = holder.is_alive() if holder is not None else None
    if alive is not None:
        return alive
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(str(status.get("updated")))
    except (TypeError, ValueError):
        return False
    return age.total_seconds() < SILENT


def _stages(folder: Path, state: str) -> tuple[int | None, int | None]:
    """How many stages a job has, and how many of them are not in its store yet."""
    try:
        config = read_config(folder / "job.yaml")
        job = Job(folder.name, folder, config)
        plan = SweepPlan([job])
        total = len(plan.paths[job.name])
        left = 0 if state == "done" else sum(not plan.done(job, path) for path in plan.paths[job.name])
    except (LmmForgetError, KeyError, TypeError):  # a folder without a job.yaml, or of another version
        return None, None
    return total, left


def _show(found: Mapping[str, Any], console: Console) -> None:
    console.print(
        f"{found['folder']}: {', '.join(f'{count} {state}' for state, count in found['counts'].items())}",
        markup=False,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    widest = max(len(job["job"]) for job in found["jobs"])
    table.add_column("job", overflow="fold", min_width=min(widest, NAME_WIDTH))
    table.add_column("state", no_wrap=True)
    table.add_column("stages", justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    slurm = any(job["slurm_id"] for job in found["jobs"])
    if slurm:
        table.add_column("Slurm", no_wrap=True)
    for job in found["jobs"]:
        stages = "" if job["stages"] is None else f"{job['stages'] - job['stages_left']}/{job['stages']}"
        row = [job["job"], job["state"], stages, _what(job)]
        table.add_row(*row, *([job["slurm_id"] or ""] if slurm else []))
    console.print(table)
    for job in found["jobs"]:
        if job["log"] and job["state"] not in ("done", "waiting"):
            console.print(f"log of {job['job']}: {job['log']}", markup=False, soft_wrap=True)
    if found["slurm"]:
        console.print(f"the queue cannot be seen from here: {found['slurm']}", markup=False)


def _what(job: Mapping[str, Any]) -> str:
    if job["state"] == "running":
        units = f"{job['done']}/{job['total']} {job['unit']}s" if (job["total"] or 0) > 1 else ""
        left = f"{job['time_left']} left" if job["time_left"] else ""
        return ", ".join(word for word in (job["phase"], units, _pace(job), left) if word)
    if job["state"] == "queued":
        return " ".join(str(item) for item in (str(job["slurm_state"]).lower(), job["reason"]) if item)
    return str(job["error"] or "")


def _pace(job: Mapping[str, Any]) -> str:
    """How many of the units just named are done in a second, or how long one takes."""
    speed = job["rate"]
    if not speed:
        return ""
    return f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"
