"""The table at the end of a run and of a sweep: readable at 80 columns, and in a log without colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmm_forget.report.load import Unfinished
from lmm_forget.report.rows import FIGURES, Estimate, Row, count, excludes_zero, points
from lmm_forget.report.settings import spread

MOST_JOBS = 24
"""Jobs up to which each has its line; of more, where they are seeds and orders of a few settings, only those show."""
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
    spreads = spread(rows)
    brief = len(rows) > MOST_JOBS and bool(spreads)
    if rows and not brief:
        console.print(sweep_table(rows, console.width))
    if brief:
        console.print(Text(f"{len(rows)} jobs; every one of them stands in summary.html and summary.csv"))
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
        figures = [_cell(figure, row.figures[figure], brackets=wide) for figure in FIGURES]
        name = Text(row.label, style="bold")
        if wide:
            table.add_row(_with_job(name, row, named), count(row.trainable), row.rates, *figures)
        else:
            name.append(f"\n{count(row.trainable)}, {row.rates}", style="not bold")
            table.add_row(_with_job(name, row, named), *figures)
    return table


def spread_table(spreads: Sequence[Mapping[str, Any]]) -> Table:
    """Mean over the seeds and orders of each setting, its interval over them, and their standard deviation."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 0),
        pad_edge=False,
        show_edge=False,
        title="over seeds and orders: mean, its 95 % t interval, standard deviation",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("recipe\njobs, rate", overflow="fold", max_width=18)
    for figure in FIGURES:
        table.add_column(_HEADINGS[figure], justify="right", no_wrap=True)
    for entry in spreads:
        cells = []
        for figure in FIGURES:
            over = entry[figure]
            if over is None:
                cells.append(Text("n/a"))
                continue
            estimate = {"value": over["mean"], "low": over["low"], "high": over["high"]}
            below = [interval(estimate, brackets=False)] if over["low"] is not None else []
            below += [f"sd {over['sd']:.1f}"] if over["sd"] is not None else []
            cells.append(_stacked(marked(figure, estimate), "\n".join(below)))
        table.add_row(Text(f"{entry['label']}\n{entry['jobs']} jobs, {entry['rates']}"), *cells)
    return table


def interval(estimate: Estimate, *, brackets: bool = True) -> str:
    """`[-2.5, -0.7]`, `-2.5/-0.7` where room is short; empty if there is no interval."""
    if estimate["low"] is None:
        return ""
    low, high = points(estimate["low"]), points(estimate["high"])
    return f"[{low}, {high}]" if brackets else f"{low}/{high}"


def marked(figure: str, estimate: Estimate) -> str:
    """The value with its mark: `-79.9*` where the interval excludes zero, a blank in its place where not."""
    mark = "*" if excludes_zero(figure, estimate) else " " if estimate["low"] is not None else ""
    return f"{points(estimate['value'])}{mark}"


def _cell(figure: str, estimate: Estimate, *, brackets: bool) -> Text:
    return _stacked(marked(figure, estimate), interval(estimate, brackets=brackets))


def _stacked(value: str, below: str) -> Text:
    text = Text(value, style="bold")
    return text.append(f"\n{below}", style="not bold") if below else text


def _named_apart(rows: Sequence[Row]) -> set[tuple[str, str]]:
    """(label, rates) that several jobs share, so that they need the job's name beside them."""
    keys = [(row.label, row.rates) for row in rows]
    return {key for key in keys if keys.count(key) > 1}


def _with_job(name: Text, row: Row, named: set[tuple[str, str]]) -> Text:
    return name.append(f"\n{row.job}", style="not bold dim") if (row.label, row.rates) in named else name
