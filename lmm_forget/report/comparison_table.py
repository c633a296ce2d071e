"""Comparisons as tables of 80 columns that are readable without colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmm_forget.report.job_rows import format_points

_ROLE_HEADINGS = {"held-out": "held-out", "target": "trained", "other": "other"}
_MEAN_KEYS = {"held-out": "heldout", "target": "targets"}
TABLE_LEGEND = (
    "Percentage points, on the questions that both answered. 95 % interval: images redrawn, 2,000 times. "
    "-/+: questions that turned wrong and right. p: answers swapped image by image, Holm-corrected within each "
    "block (means: as they are); * below 0.05. sees: the true change that so many questions show four times in five."
)


def print_comparisons(comparisons: Sequence[Mapping[str, Any]], notes: Sequence[str], console: Console) -> None:
    """Print results of `compare_job_stages`, their notes, and the verdicts of the --fail-if conditions."""
    for comparison in comparisons:
        first, second = comparison["first"], comparison["second"]
        for letter, side in (("A", first), ("B", second)):
            console.print(Text(f"{letter}  {side['name']}{_describe_stage(side)}", style="bold"), soft_wrap=True)
        console.print(build_comparison_table(comparison))
        for note in comparison["notes"]:
            console.print(Text(f"note: {note}"))
        for condition in comparison.get("conditions", []):
            verdict = "FAILED, it holds" if condition["holds"] else "does not hold"
            console.print(
                Text(f'--fail-if "{condition["condition"]}": {verdict} ({_format_number(condition["value"])})'),
                style="bold" if condition["holds"] else "",
            )
        console.print()
    for note in notes:
        console.print(Text(f"note: {note}"))
    console.print(Text(TABLE_LEGEND, style="dim"))


def build_comparison_table(comparison: Mapping[str, Any]) -> Table:
    """A row per benchmark, grouped by role, each group with its mean."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("", overflow="fold", min_width=16)
    for heading in ("A", "B", "B - A", "95 %", "-/+", "p ", "sees"):
        table.add_column(heading, justify="right", no_wrap=True)
    for role, heading in _ROLE_HEADINGS.items():
        entries = {t: e for t, e in comparison["benchmarks"].items() if e["role"] == role}
        if not entries:
            continue
        table.add_row(Text(heading, style="bold"))
        for task, entry in entries.items():
            table.add_row(
                Text(task),
                f"{entry['before']:.1f}",
                f"{entry['after']:.1f}",
                *_format_comparison_cells(entry, entry["p_holm"]),
            )
        mean = comparison[_MEAN_KEYS[role]] if role in _MEAN_KEYS else None
        if mean and len(entries) > 1:
            table.add_row(Text("mean", style="bold"), "", "", *_format_comparison_cells(mean, mean["p_value"]))
    return table


def format_p_value(p_value: float) -> str:
    """A p-value with three decimals, or `<.001`."""
    return "<.001" if p_value < 0.001 else f"{p_value:.3f}".lstrip("0") if p_value < 1 else "1"


def _format_comparison_cells(entry: Mapping[str, Any], p_value: float) -> tuple[str, ...]:
    interval_text = "" if entry["low"] is None else f"{entry['low']:+.1f}/{entry['high']:+.1f}"
    detectable_text = "" if entry["resolvable"] is None else f"{entry['resolvable']:.1f}"
    flips_text = f"-{entry['lost']}/+{entry['gained']}"
    return (
        format_points(entry["value"]),
        interval_text,
        flips_text,
        f"{format_p_value(p_value)}{'*' if p_value < 0.05 else ' '}",
        detectable_text,
    )


def _describe_stage(side: Mapping[str, Any]) -> str:
    """Which of the job's stages it is, in brackets."""
    return f"  (after stage {side['stage']} of {side['stages']})" if side["stage"] else "  (before any stage)"


def _format_number(value: float) -> str:
    return f"{value:.4g}"
