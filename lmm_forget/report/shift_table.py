"""The short form of `lmm-forget why` on the screen: tables that are readable at 80 columns, and the verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmm_forget.metrics.forgetting_statements import LAYER_PARTS, format_correlation
from lmm_forget.report.probe_plots import format_prompts_label
from lmm_forget.report.shift_report import (
    REPLY_FORMATS,
    Findings,
    format_flip_rows,
    format_layer_rows,
    format_part_name,
    format_verdicts,
)
from lmm_forget.report.shift_summary import ShiftSummary

_LEFT_COLUMNS = ("figure", "job", "after")  # names; every other column holds numbers


def print_shift_summary(summary: ShiftSummary, console: Console) -> None:
    """Print correlations, shares of the layers, flips and verdicts."""
    for shift in summary.correlations["shifts"]:
        title = f"shift on {format_prompts_label(shift['prompts'], shift['mode'])}, and held-out change"
        columns = ("figure", "Pearson", "Spearman", "models", "went back")
        _print_table(console, title, columns, _format_correlation_rows(shift))
    console.print("went back: of the stages after which the held-out mean had risen, those with a smaller shift.")
    _print_table(
        console,
        "which blocks change the logits (share, final norm folded in)",
        ("job", "after", *map(format_part_name, LAYER_PARTS)),
        format_layer_rows(summary.correlations),
    )
    _print_table(
        console,
        "held-out questions that turned wrong, and formats of the answers now",
        ("job", "after", "wrong", *REPLY_FORMATS),
        format_flip_rows(summary.flip_counts),
    )
    verdicts = "\n".join(format_verdicts(summary.correlations, summary.statements))
    console.print(escape(verdicts.replace("**", "").removeprefix("## ")))


def _format_correlation_rows(shift: Findings) -> list[tuple[str, ...]]:
    """Figure, its correlations with the held-out change, number of models, and how often it went back with a rise."""
    rows: list[tuple[str, ...]] = []
    for name, correlations in shift["figures"].items():
        if "heldout" in correlations:
            entry, recovery = correlations["heldout"], shift["recovery"].get(name)
            rows.append(
                (
                    name,
                    format_correlation(entry["pearson"]),
                    format_correlation(entry["spearman"]),
                    str(entry["n"]),
                    f"{recovery['shift_went_back']} of {recovery['recovered']}" if recovery else "",
                )
            )
    return rows


def _print_table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; nothing where it has no rows."""
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in _LEFT_COLUMNS else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    if rows:
        console.print(table)
