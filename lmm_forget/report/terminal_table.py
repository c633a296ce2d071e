"""The table at the end of a run or a sweep; readable at 80 columns, and in a log without colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmm_forget.report.experiment_settings import ExperimentSetting, summarize_seed_spread
from lmm_forget.report.job_results import UnfinishedJob
from lmm_forget.report.job_rows import (
    FIGURE_TITLES,
    Estimate,
    JobRow,
    format_parameter_count,
    format_points,
    is_significant,
)

MAX_LISTED_JOBS = 24
"""With more jobs than this, if they are seeds or orders of a few settings, only the settings are printed."""
_WIDE_COLUMNS = 118  # from this width on, parameters and learning rate have columns of their own
_FIGURE_HEADINGS = {
    "learning": "target\nlearning",
    "forgetting": "target\nforgetting",
    "final": "held-out\nfinal",
    "worst": "held-out\nworst",
    "recovery": "held-out\nrecovery",
}


def print_sweep_table(
    rows: Sequence[JobRow],
    settings: Sequence[ExperimentSetting],
    console: Console,
    *,
    notes: Iterable[str] = (),
    unfinished: Sequence[UnfinishedJob] = (),
) -> None:
    """Print the table of `rows`, the spread over seeds and orders of `settings`, the notes and the unfinished jobs."""
    spreads = summarize_seed_spread(settings)
    is_abridged = len(rows) > MAX_LISTED_JOBS and bool(spreads)
    if rows and not is_abridged:
        console.print(build_sweep_table(rows, console.width))
    if is_abridged:
        console.print(Text(f"{len(rows)} jobs; every one of them stands in summary.html and summary.csv"))
    if spreads:
        console.print(build_spread_table(spreads))
    for note in notes if rows else ():
        console.print(Text(note, style="dim"))
    for job in unfinished:
        console.print(Text.assemble((f"{job.state}: ", "bold red"), job.job, f" - {job.error}" if job.error else ""))


def build_sweep_table(rows: Sequence[JobRow], width: int = 80) -> Table:
    """A table with a row per job; at a `width` below `_WIDE_COLUMNS`, all choices share the first column."""
    is_wide = width >= _WIDE_COLUMNS
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1 if is_wide else 0, 0, 0), pad_edge=False, show_edge=False)
    table.add_column(
        "recipe" if is_wide else "recipe\nparameters, rate", overflow="fold", max_width=30 if is_wide else 18
    )
    if is_wide:
        table.add_column("trainable\nparameters", justify="right", no_wrap=True)
        table.add_column("learning\nrate", justify="right")
    for figure in FIGURE_TITLES:
        table.add_column(_FIGURE_HEADINGS[figure], justify="right", no_wrap=True)
    ambiguous_labels = _find_ambiguous_labels(rows)
    for row in rows:
        figures = [_format_figure_cell(figure, row.figures[figure], use_brackets=is_wide) for figure in FIGURE_TITLES]
        name = Text(row.label, style="bold")
        if is_wide:
            table.add_row(
                _append_job_name(name, row, ambiguous_labels),
                format_parameter_count(row.trainable),
                row.learning_rates,
                *figures,
            )
        else:
            name.append(f"\n{format_parameter_count(row.trainable)}, {row.learning_rates}", style="not bold")
            table.add_row(_append_job_name(name, row, ambiguous_labels), *figures)
    return table


def build_spread_table(spreads: Sequence[Mapping[str, Any]]) -> Table:
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
    for figure in FIGURE_TITLES:
        table.add_column(_FIGURE_HEADINGS[figure], justify="right", no_wrap=True)
    for entry in spreads:
        cells = []
        for figure in FIGURE_TITLES:
            figure_spread = entry[figure]
            if figure_spread is None:
                cells.append(Text("n/a"))
                continue
            estimate = {
                "value": figure_spread["mean"],
                "low": figure_spread["low"],
                "high": figure_spread["high"],
            }
            lines_below = [format_interval(estimate, use_brackets=False)] if figure_spread["low"] is not None else []
            lines_below += [f"sd {figure_spread['sd']:.1f}"] if figure_spread["sd"] is not None else []
            cells.append(_stack_text(format_marked_value(figure, estimate), "\n".join(lines_below)))
        table.add_row(Text(f"{entry['label']}\n{entry['jobs']} jobs, {entry['rates']}"), *cells)
    return table


def format_interval(estimate: Estimate, *, use_brackets: bool = True) -> str:
    """`[-2.5, -0.7]`, or `-2.5/-0.7` without brackets; empty if there is no interval."""
    if estimate["low"] is None:
        return ""
    low, high = format_points(estimate["low"]), format_points(estimate["high"])
    return f"[{low}, {high}]" if use_brackets else f"{low}/{high}"


def format_marked_value(figure: str, estimate: Estimate) -> str:
    """The value with its mark: `-79.9*` if the interval excludes zero, with a blank instead of the * if not."""
    mark = "*" if is_significant(figure, estimate) else " " if estimate["low"] is not None else ""
    return f"{format_points(estimate['value'])}{mark}"


def _format_figure_cell(figure: str, estimate: Estimate, *, use_brackets: bool) -> Text:
    return _stack_text(format_marked_value(figure, estimate), format_interval(estimate, use_brackets=use_brackets))


def _stack_text(value: str, below: str) -> Text:
    text = Text(value, style="bold")
    return text.append(f"\n{below}", style="not bold") if below else text


def _find_ambiguous_labels(rows: Sequence[JobRow]) -> set[tuple[str, str]]:
    """(label, rates) pairs that several jobs share, so that the table must show the jobs' names too."""
    keys = [(row.label, row.learning_rates) for row in rows]
    return {key for key in keys if keys.count(key) > 1}


def _append_job_name(name: Text, row: JobRow, ambiguous_labels: set[tuple[str, str]]) -> Text:
    return (
        name.append(f"\n{row.job}", style="not bold dim")
        if (row.label, row.learning_rates) in ambiguous_labels
        else name
    )
