"""`lmm-forget status multirun/<name>`: every job of a sweep, now, from its files and Slurm's queue.

It changes nothing, needs no model library, and works while jobs run and long after, wherever the folder can be seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lmm_forget.cli.command import Arguments, Command

MIN_NAME_WIDTH = 32
"""Characters of a job's name that stay on one line whatever the terminal's width."""


def _show_status(arguments: Arguments) -> None:
    folder = arguments.get_folder()
    from lmm_forget.launch.sweep_status import collect_sweep_status

    sweep_status = collect_sweep_status(folder)
    if arguments.output_format == "json":
        print(json.dumps(sweep_status, indent=2, ensure_ascii=False))
    else:
        _print_sweep_status(sweep_status)


def _print_sweep_status(sweep_status: Mapping[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"{sweep_status['folder']}: {', '.join(f'{count} {state}' for state, count in sweep_status['counts'].items())}",
        markup=False,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    longest_name = max(len(job["job"]) for job in sweep_status["jobs"])
    table.add_column("job", overflow="fold", min_width=min(longest_name, MIN_NAME_WIDTH))
    table.add_column("state", no_wrap=True)
    table.add_column("stages", justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    slurm = any(job["slurm_id"] for job in sweep_status["jobs"])
    if slurm:
        table.add_column("Slurm", no_wrap=True)
    for job in sweep_status["jobs"]:
        stages = "" if job["stages"] is None else f"{job['stages'] - job['stages_left']}/{job['stages']}"
        row = [job["job"], job["state"], stages, _describe_activity(job)]
        table.add_row(*row, *([job["slurm_id"] or ""] if slurm else []))
    console.print(table)
    for job in sweep_status["jobs"]:
        if job["log"] and job["state"] not in ("done", "waiting"):
            console.print(f"log of {job['job']}: {job['log']}", markup=False, soft_wrap=True)
    if sweep_status["slurm"]:
        console.print(f"the queue cannot be seen from here: {sweep_status['slurm']}", markup=False)


def _describe_activity(job_status: Mapping[str, Any]) -> str:
    if job_status["state"] == "running":
        units = (
            f"{job_status['done']}/{job_status['total']} {job_status['unit']}s"
            if (job_status["total"] or 0) > 1
            else ""
        )
        left = f"{job_status['time_left']} left" if job_status["time_left"] else ""
        return ", ".join(word for word in (job_status["phase"], units, _format_rate(job_status), left) if word)
    if job_status["state"] == "queued":
        return " ".join(str(item) for item in (str(job_status["slurm_state"]).lower(), job_status["reason"]) if item)
    return str(job_status["error"] or "")


def _format_rate(job_status: Mapping[str, Any]) -> str:
    """How many of the units just named are done in a second, or how long one takes."""
    speed = job_status["rate"]
    if not speed:
        return ""
    return f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"


COMMAND = Command(
    name="status",
    summary="show what every job of a sweep is doing, wherever it runs",
    run=_show_status,
    usage="FOLDER",
    words="FOLDER",
    description="""
For every job of multirun/<name> (or the one job multirun/<name>/<job>): its state, phase, rate and remaining time, how
many of its stages are done, its Slurm job and why that waits, where its log is, and the last error.""",
    formats=("table", "json"),
    notes="""
states: done, running, queued (in Slurm's queue), waiting (not started), interrupted (the same command resumes it),
failed, lost (its status says running, but its process is gone)""",
    examples=("lmm-forget status multirun/demo",),
    exit_codes={0: "shown", 2: "there is no such folder or no job in it"},
)
main = COMMAND.main
