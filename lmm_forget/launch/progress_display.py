"""What is shown while jobs run: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from lmm_forget.distributed.heartbeat import read_job_status
from lmm_forget.launch.job_folders import Job
from lmm_forget.launch.outcomes import JobOutcome

REFRESH_SECONDS = 1.0
"""Seconds between two readings of the status files."""
MAX_ROWS = 24


class ProgressDisplay:
    """Shows jobs through their status files: the observer of a ProcessPool, and a context manager.

    `finished` are jobs that were done before this command: counted, not shown.
    """

    def __init__(self, jobs: Sequence[Job], finished: Sequence[Job] = (), stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._num_pending = len(jobs)
        self._running: dict[str, Job] = {}
        self._outcomes: list[JobOutcome] = []
        self._num_finished_before = len(finished)
        self._num_jobs = len(jobs) + len(finished)
        self._last_phases: dict[str, str] = {}
        self._next_refresh = 0.0
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        )

    def __enter__(self) -> ProgressDisplay:
        """Show what was done before, and start the table."""
        if self._num_finished_before:
            self._print_line(f"{self._num_finished_before} of {self._num_jobs} jobs are finished already")
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the table away; what remains is the summary."""
        if self._live:
            self._live.stop()

    def on_job_started(self, job: Job) -> None:
        """A process for this job exists now."""
        self._num_pending -= 1
        self._running[job.name] = job
        if not self._live:
            self._print_line(f"{job.name}: started (log: {job.log_path})")

    def on_job_ended(self, outcome: JobOutcome) -> None:
        """The job's process is gone."""
        self._running.pop(outcome.job.name, None)
        self._outcomes.append(outcome)
        count = f"[{self._num_finished_before + len(self._outcomes)}/{self._num_jobs}]"
        # Of a job alone the last line of the command says why.
        why = f": {outcome.cause}" if self._num_jobs > 1 else ""
        self._print_line(f"{count} {outcome.job.name}: {'finished' if outcome.is_finished else f'FAILED{why}'}")

    def print_message(self, message: str) -> None:
        """A line about the sweep as a whole."""
        self._print_line(message)

    def on_tick(self) -> None:
        """Read the status files, at most once a second."""
        if time.monotonic() < self._next_refresh:
            return
        self._next_refresh = time.monotonic() + REFRESH_SECONDS
        status_by_job = {name: read_job_status(job.folder) for name, job in self._running.items()}
        if self._live:
            self._live.update(self._build_table(status_by_job), refresh=True)
            return
        for name, status in status_by_job.items():
            phase = str(status.get("phase", ""))
            if phase and phase != "starting" and self._last_phases.get(name) != phase:
                self._last_phases[name] = phase
                count = status.get("total", 0)
                total = f" ({count} {status['unit']}{'s' if count > 1 else ''})" if count else ""
                self._print_line(f"{name}: {phase}{total}")

    def _build_table(self, status_by_job: dict[str, dict[str, Any]]) -> Table:
        failed = sum(not outcome.is_finished for outcome in self._outcomes)
        done = self._num_finished_before + len(self._outcomes) - failed
        title = f"{done} of {self._num_jobs} jobs finished"
        title += f", {failed} failed" if failed else ""
        title += f", {self._num_pending} waiting" if self._num_pending else ""
        table = Table(title=title, title_justify="left", expand=True, box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("job", overflow="fold", ratio=2)
        table.add_column("phase", overflow="fold", ratio=3)
        table.add_column("done", width=10)
        table.add_column("rate", justify="right", no_wrap=True)
        table.add_column("left", justify="right", no_wrap=True)
        for name, status in list(status_by_job.items())[:MAX_ROWS]:
            done_units, total = status.get("done", 0), status.get("total", 0)
            bar = ProgressBar(total=total, completed=min(done_units, total), width=10) if total else ""
            table.add_row(name, _format_phase(status), bar, format_throughput(status), format_time_left(status))
        return table

    def _print_line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def format_time_left(status: dict[str, Any]) -> str:
    """Estimated time to the end of the phase, as m:ss or h:mm:ss; empty if there is nothing to go by."""
    rate, total = status.get("rate"), status.get("total")
    if not rate or not total:
        return ""
    seconds = round(max(0, total - status.get("done", 0)) / rate)
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"


def _format_phase(status: dict[str, Any]) -> str:
    """The phase, below it its latest figures."""
    info = ", ".join(f"{key} {_format_value(value)}" for key, value in (status.get("info") or {}).items())
    phase = str(status.get("phase", "starting"))
    return f"{phase}\n{info}" if info else phase


def _format_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_throughput(status: Mapping[str, Any]) -> str:
    """Units in a second, or seconds for one, the unit cut to what 80 columns have room for."""
    speed, unit = status.get("rate"), str(status.get("unit", ""))[:5]
    if not speed:
        return ""
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"
