"""The table at the end of a run and of a sweep: readable at 80 columns, and in a log without colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmm_forget.report.load import Unfinished
from lmm_forget.report.rows import FIGURES, Estimate, Row, count, points, spread

_WIDE = 118  # columns from which choices get columns of their own
_HEADINGS = {
    "learning": "target\nlearning",
    "forgetting": "target\nforgetting",
    "final": "held-out\nfinal",
    "worst": "held-out\nworst",
    "recovery": "held-out\nrecovery",
}


def render(
    rows: Sequence[Row], console: Console, *, notes: Iterable[str] = (), unfinished: Sequence[Unfinished] = ()
) -> None:
    """Print the table of `rows`, the spread over seeds and orders, the notes and the unfinished jobs."""
    if rows:
        console.print(sweep_table(rows, console.width))
    spreads = spread(rows)
    if spreads:
        console.print(spread_table(spreads))
    for note in notes if rows else ():
        console.print(Text(note, style="dim"))
    for job in unfinished:
        console.print(
            Text.assemble((f"{job.state}: ", "bold red"), job.job, f" - {job.error}" if job.error else "")
        )


def sweep_table(rows: Sequence[Row], width: int = 80) -> Table:
    """A rich table of jobs; below `_WIDE` columns the choices share the first column."""
    wide = width >= _WIDE
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1 if wide else 0, 0, 0), pad_edge=False, show_edge=False)
    table.add_column(
        "recipe" if wide else "recipe\nparameters, rate", overflow="fold", max_width=30 if wide else 18
    )
    if wide:
        table.add_column("trainable\nparameters", justify="right", no_wrap=True)
        table.add_column("learning\nrate", justify="right")
    for figure in FIGURES:
        table.add_column(_HEADINGS[figure], justify="right", no_wrap=True)
    named = _named_apart(rows)
    for row in rows:
        figures = [_cell(row.figures[figure], brackets=wide) for figure in FIGURES]
        name = Text(row.label, style="bold")
        if wide:
            table.add_row(_with_job(name, row, named), count(row.trainable), row.rates, *figures)
        else:
            name.append(f"\n{count(row.trainable)}, {row.rates}", style="not bold")
            table.add_row(_with_job(name, row, named), *figures)
    return table


def spread_table(spreads: Sequence[Mapping[str, Any]]) -> Table:
    """Mean and range over the seeds and orders of each setting; no interval, the jobs are few."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 0),
        pad_edge=False,
        show_edge=False,
        title="mean over seeds and orders, below it lowest and highest",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("recipe\njobs, rate", overflow="fold", max_width=18)
    for figure in FIGURES:
        table.add_column(_HEADINGS[figure], justify="right", no_wrap=True)
    for entry in spreads:
        cells = [
            _stacked(points(entry[f]["mean"]), f"{points(entry[f]['min'])}/{points(entry[f]['max'])}")
            if entry[f]
            else Text("n/a")
            for f in FIGURES
        ]
        table.add_row(Text(f"{entry['label']}\n{entry['jobs']} jobs, {entry['rates']}"), *cells)
    return table


def interval(estimate: Estimate, *, brackets: bool = True) -> str:
    """`[-2.5, -0.7]`, `-2.5/-0.7` where room is short; empty if there is no interval."""
    if estimate["low"] is None:
        return ""
    low, high = points(estimate["low"]), points(estimate["high"])
    return f"[{low}, {high}]" if brackets else f"{low}/{high}"


def _cell(estimate: Estimate, *, brackets: bool) -> Text:
    return _stacked(points(estimate["value"]), interval(estimate, brackets=brackets))


def _stacked(value: str, below: str) -> Text:
    text = Text(value, style="bold")
    return text.append(f"\n{below}", style="not bold") if below else text


def _named_apart(rows: Sequence[Row]) -> set[tuple[str, str]]:
    """(label, rates) that several jobs share, so that they need the job's name beside them."""
    keys = [(row.label, row.rates) for row in rows]
    return {key for key in keys if keys.count(key) > 1}


def _with_job(name: Text, row: Row, named: set[tuple[str, str]]) -> Text:
    return name.append(f"\n{row.job}", style="not bold dim") if (row.label, row.rates) in named else name
