"""A comparison as a table: 80 columns, no colour needed to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmm_forget.report.rows import points

_ROLES = {"held-out": "held-out", "target": "taught", "other": "other"}
_MEANS = {"held-out": "heldout", "target": "targets"}
LEGEND = (
    "Percentage points, on the questions that both answered. 95 % interval: images redrawn, 2,000 times. "
    "-/+: questions that turned wrong and right. p: answers swapped image by image, Holm-corrected within each "
    "block (means: as they are); * below 0.05. sees: the true change that so many questions show four times in five."
)


def show(found: Sequence[Mapping[str, Any]], notes: Sequence[str], console: Console) -> None:
    """Print comparisons made by `compare_places`, with what was left out and what the conditions say."""
    for comparison in found:
        first, second = comparison["first"], comparison["second"]
        for letter, side in (("A", first), ("B", second)):
            console.print(Text(f"{letter}  {side['name']}{_after(side)}", style="bold"), soft_wrap=True)
        console.print(pair_table(comparison))
        for note in comparison["notes"]:
            console.print(Text(f"note: {note}"))
        for judged in comparison.get("conditions", []):
            verdict = "FAILED, it holds" if judged["holds"] else "does not hold"
            console.print(
                Text(f'--fail-if "{judged["condition"]}": {verdict} ({_number(judged["value"])})'),
                style="bold" if judged["holds"] else "",
            )
        console.print()
    for note in notes:
        console.print(Text(f"note: {note}"))
    console.print(Text(LEGEND, style="dim"))


def pair_table(comparison: Mapping[str, Any]) -> Table:
    """One line per benchmark by role, below them the mean."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("", overflow="fold", min_width=16)
    for heading in ("A", "B", "B - A", "95 %", "-/+", "p ", "sees"):
        table.add_column(heading, justify="right", no_wrap=True)
    for role, heading in _ROLES.items():
        entries = {t: e for t, e in comparison["benchmarks"].items() if e["role"] == role}
        if not entries:
            continue
        table.add_row(Text(heading, style="bold"))
        for task, entry in entries.items():
            table.add_row(
                Text(task),
                f"{entry['before']:.1f}",
                f"{entry['after']:.1f}",
                *_cells(entry, entry["p_holm"]),
            )
        mean = comparison[_MEANS[role]] if role in _MEANS else None
        if mean and len(entries) > 1:
            table.add_row(Text("mean", style="bold"), "", "", *_cells(mean, mean["p_value"]))
    return table


def p_text(p: float) -> str:
    """A p-value to three decimals, `<.001` below them."""
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def _cells(entry: Mapping[str, Any], p: float) -> tuple[str, ...]:
    between = "" if entry["low"] is None else f"{entry['low']:+.1f}/{entry['high']:+.1f}"
    need = "" if entry["resolvable"] is None else f"{entry['resolvable']:.1f}"
    turned = f"-{entry['lost']}/+{entry['gained']}"
    return (points(entry["value"]), between, turned, f"{p_text(p)}{'*' if p < 0.05 else ' '}", need)


def _after(side: Mapping[str, Any]) -> str:
    """What the name leaves open: which stage it is."""
    return f"  (after stage {side['stage']} of {side['stages']})" if side["stage"] else "  (before any stage)"


def _number(value: float) -> str:
    return f"{value:.4g}"
