"""What a person sees while jobs run: a live table on a terminal, plain lines anywhere else."""

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

from lmm_forget.distributed.heartbeat import read_status
from lmm_forget.launch.jobs import Job
from lmm_forget.launch.processes import Outcome

REFRESH = 1.0
"""Seconds between two looks at the status files."""
MOST_ROWS = 24


class View:
    """Watches jobs through their status files; give it to a Pool, and use it as a context manager.

    `finished` are jobs that were done before this command: counted, not shown.
    """

    def __init__(
        self, jobs: Sequence[Job], finished: Sequence[Job] = (), stream: TextIO | None = None
    ) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._waiting = len(jobs)
        self._running: dict[str, Job] = {}
        self._ended: list[Outcome] = []
        self._already = len(finished)
        self._all = len(jobs) + len(finished)
        self._phases: dict[str, str] = {}
        self._next = 0.0
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True)
            if self._console.is_terminal
            else None
        )

    def __enter__(self) -> View:
        """Show what was done before, and start the table."""
        if self._already:
            self._line(f"{self._already} of {self._all} jobs are finished already")
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Take the table away; what remains is the summary."""
        if self._live:
            self._live.stop()

    def started(self, job: Job) -> None:
        """A process for this job exists now."""
        self._waiting -= 1
        self._running[job.name] = job
        if not self._live:
            self._line(f"{job.name}: started (log: {job.log})")

    def ended(self, outcome: Outcome) -> None:
        """The job's process is gone."""
        self._running.pop(outcome.job.name, None)
        self._ended.append(outcome)
        count = f"[{self._already + len(self._ended)}/{self._all}]"
        # Of a job alone the last line of the command says why.
        why = f": {outcome.cause}" if self._all > 1 else ""
        self._line(f"{count} {outcome.job.name}: {'finished' if outcome.finished else f'FAILED{why}'}")

    def say(self, text: str) -> None:
        """A line about the sweep as a whole."""
        self._line(text)

    def tick(self) -> None:
        """Look at the status files, at most once a second."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REFRESH
        states = {name: read_status(job.folder) for name, job in self._running.items()}
        if self._live:
            self._live.update(self._table(states), refresh=True)
            return
        for name, status in states.items():
            phase = str(status.get("phase", ""))
            if phase and phase != "starting" and self._phases.get(name) != phase:
                self._phases[name] = phase
                count = status.get("total", 0)
                total = f" ({count} {status['unit']}{'s' if count > 1 else ''})" if count else ""
                self._line(f"{name}: {phase}{total}")

    def _table(self, states: dict[str, dict[str, Any]]) -> Table:
        failed = sum(not outcome.finished for outcome in self._ended)
        done = self._already + len(self._ended) - failed
        title = f"{done} of {self._all} jobs finished"
        title += f", {failed} failed" if failed else ""
        title += f", {self._waiting} waiting" if self._waiting else ""
        table = Table(title=title, title_justify="left", expand=True, box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("job", overflow="fold", ratio=2)
        table.add_column("phase", overflow="fold", ratio=3)
        table.add_column("done", width=10)
        table.add_column("rate", justify="right", no_wrap=True)
        table.add_column("left", justify="right", no_wrap=True)
        for name, status in list(states.items())[:MOST_ROWS]:
            done_units, total = status.get("done", 0), status.get("total", 0)
            bar = ProgressBar(total=total, completed=min(done_units, total), width=10) if total else ""
            table.add_row(name, _phase(status), bar, rate(status), time_left(status))
        return table

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def time_left(status: dict[str, Any]) -> str:
    """Estimated time to the end of the phase, as m:ss or h:mm:ss; empty if there is nothing to go by."""
    rate, total = status.get("rate"), status.get("total")
    if not rate or not total:
        return ""
    seconds = round(max(0, total - status.get("done", 0)) / rate)
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"


def _phase(status: dict[str, Any]) -> str:
    """The phase, below it what it said last."""
    info = ", ".join(f"{key} {_short(value)}" for key, value in (status.get("info") or {}).items())
    phase = str(status.get("phase", "starting"))
    return f"{phase}\n{info}" if info else phase


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def rate(status: Mapping[str, Any]) -> str:
    """Units in a second, or seconds for one, the unit cut to what 80 columns have room for."""
    speed, unit = status.get("rate"), str(status.get("unit", ""))[:5]
    if not speed:
        return ""
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"
