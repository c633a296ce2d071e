"""Pictures of one job and of a sweep, drawn by matplotlib without a screen and without global state."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmm_forget.report.rows import Row, rate, sweep_rows
from lmm_forget.report.write import write_bytes

# Middle tones that keep their contrast on white and on a dark page; markers tell the lines apart as well.
PALETTE = ("#3b82d6", "#d9722e", "#1a9a78", "#c653a0", "#a5851f", "#8a6fd6", "#d64545", "#7d8590")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", ":", "-.")  # tells jobs of one recipe apart
_MANY = 12  # lines above which bars are left out and a legend names recipes only
_INK = "#5b6168"  # replaced by the page's own colour where a picture is set into HTML
_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    "svg.hashsalt": "lmm-forget",  # equal results give equal files
}


def job_figures(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `heldout_per_stage` and `targets_per_stage` of one job, each .png and .svg, into its folder."""
    pictures = {
        "heldout_per_stage": heldout_per_stage(sweep_rows([results])),
        "targets_per_stage": targets_per_stage(results),
    }
    return [path for name, figure in pictures.items() for path in save(figure, folder / name)]


def sweep_figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write a sweep's `learning_vs_forgetting` and `heldout_per_stage`, each .png and .svg, into `folder`."""
    pictures = {
        "learning_vs_forgetting": learning_vs_forgetting(rows),
        "heldout_per_stage": heldout_per_stage(rows),
    }
    return [path for name, figure in pictures.items() for path in save(figure, folder / name)]


def heldout_per_stage(rows: Sequence[Row]) -> Figure:
    """Held-out mean at the base and after each stage, a line per job, with the interval of each change.

    Of more than `_MANY` jobs only thin lines are drawn, named by recipe.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(
            "held-out mean (points)", "Held-out mean per stage (bars: 95 % interval of the change)"
        )
        same = len({row.tasks for row in rows}) == 1
        many = len(rows) > _MANY
        seen: list[str] = []
        for row in rows:
            if row.heldout_base is None:
                continue
            base = row.heldout_base
            means = [base, *(base + stage["value"] for stage in row.heldout_per_stage)]
            bars = [(0.0, 0.0), *(_arms(stage) for stage in row.heldout_per_stage)]
            name = row.label if many else _name(row, rows)
            axes.errorbar(
                range(len(means)),
                means,
                yerr=None if many else [[low for low, _ in bars], [high for _, high in bars]],
                label=None if many and row.label in seen else name,
                linestyle="-" if many else _DASHES[seen.count(row.label) % len(_DASHES)],
                elinewidth=0.7,
                linewidth=0.8 if many else 1.6,
                markersize=4,
                **_look(row.label, rows),
            )
            seen.append(row.label)
        stages = max((len(row.tasks) for row in rows), default=0)
        _stage_ticks(axes, rows[0].tasks if same else [f"stage {stage}" for stage in range(1, stages + 1)])
        _legend(axes)
    return figure


def targets_per_stage(results: Mapping[str, Any]) -> Figure:
    """Score of each target at the base and after each stage; a ring marks the stages that taught it."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("score (points)", "Targets after each stage (ring: just taught)")
        stages = results["stages"]
        scores = [results["base"]["scores"], *(stage["scores"] for stage in stages)]
        taught = [stage["task"] for stage in stages]
        for place, task in enumerate(dict.fromkeys(taught)):
            values = [score[task]["value"] for score in scores]
            colour = PALETTE[place % len(PALETTE)]
            marker = MARKERS[place % len(MARKERS)]
            axes.plot(
                range(len(values)),
                values,
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.6,
                label=task,
            )
            rings = [stage for stage, name in enumerate(taught, start=1) if name == task]
            axes.scatter(
                rings,
                [values[stage] for stage in rings],
                s=90,
                facecolors="none",
                edgecolors=colour,
                zorder=3,
            )
        axes.set_ylim(-4, 104)
        _stage_ticks(axes, taught)
        _legend(axes)
    return figure


def learning_vs_forgetting(rows: Sequence[Row]) -> Figure:
    """Target learning against final held-out forgetting, a point per job with both intervals.

    A line joins the learning rates of one recipe taught the same tasks with the same seed: its frontier.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("held-out forgetting, final (points)", "What was learned, and what it cost")
        axes.set_xlabel("target learning (points)")
        axes.axhline(0, color=_INK, linewidth=0.6, alpha=0.6)
        lines: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            if row.figures["final"]["value"] is not None:
                lines.setdefault((row.label, row.tasks, row.seed), []).append(row)
        legend: set[str] = set()
        for line in lines.values():
            label, ordered = line[0].label, sorted(line, key=_rate)
            _frontier(axes, ordered, _look(label, rows), None if label in legend else label)
            legend.add(label)
        _legend(axes)
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `<stem>.png` (on white) and `<stem>.svg` (no background); returns their paths."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    png = write_bytes(stem.with_name(f"{stem.name}.png"), buffer.getvalue())
    return [png, write_bytes(stem.with_name(f"{stem.name}.svg"), svg(figure).encode())]


def svg(figure: Figure) -> str:
    """The picture as an SVG document without a background; equal figures give equal text."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def inline(document: str, description: str) -> str:
    """An SVG document as an <svg> element for an HTML page, its ink in the page's colour."""
    element = document[document.index("<svg") :].replace(_INK, "currentColor")
    return element.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)


def _axes(ylabel: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.grid(axis="y", color=_INK, alpha=0.18, linewidth=0.6)
    return figure, axes


def _frontier(axes: Axes, line: Sequence[Row], look: dict[str, Any], label: str | None) -> None:
    """One recipe's points in the order of their learning rates, each named by its rate."""
    learning = [row.figures["learning"] for row in line]
    final = [row.figures["final"] for row in line]
    x, y = [estimate["value"] for estimate in learning], [estimate["value"] for estimate in final]
    across, up = [_arms(estimate) for estimate in learning], [_arms(estimate) for estimate in final]
    axes.errorbar(
        x,
        y,
        xerr=[[low for low, _ in across], [high for _, high in across]],
        yerr=[[low for low, _ in up], [high for _, high in up]],
        label=label,
        capsize=0,
        elinewidth=0.6,
        linewidth=1.6,
        markersize=5,
        **look,
    )
    if len(line) > 1:
        for row, left, top in zip(line, x, y, strict=True):
            axes.annotate(
                rate(_rate(row)), (left, top), textcoords="offset points", xytext=(5, 5), fontsize=7
            )


def _arms(estimate: Mapping[str, Any]) -> tuple[float, float]:
    """Lengths of an error bar below and above the value; none without an interval."""
    if estimate["low"] is None:
        return 0.0, 0.0
    value = estimate["value"]
    return max(0.0, value - estimate["low"]), max(0.0, estimate["high"] - value)


def _look(label: str, rows: Sequence[Row]) -> dict[str, Any]:
    place = list(dict.fromkeys(row.label for row in rows)).index(label)
    # past the palette's end colours start again with other markers, so that no two recipes look the same
    marker = MARKERS[(place + place // len(PALETTE)) % len(MARKERS)]
    return {"color": PALETTE[place % len(PALETTE)], "marker": marker}


def _name(row: Row, rows: Sequence[Row]) -> str:
    """The shortest name that tells this job from the others."""
    if sum(other.label == row.label for other in rows) == 1:
        return row.label
    name = f"{row.label} {row.rates}"
    return (
        name if sum((other.label, other.rates) == (row.label, row.rates) for other in rows) == 1 else row.job
    )


def _rate(row: Row) -> float:
    return row.learning_rate or row.vision_learning_rate or 0.0


def _stage_ticks(axes: Axes, stages: Sequence[str]) -> None:
    axes.set_xticks(
        range(len(stages) + 1), ["base", *stages], rotation=25, ha="right", rotation_mode="anchor"
    )


def _legend(axes: Axes) -> None:
    """A legend under the picture, where it hides no point."""
    handles, labels = axes.get_legend_handles_labels()
    if handles and isinstance(axes.figure, Figure):
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))


__all__ = [
    "heldout_per_stage",
    "inline",
    "job_figures",
    "learning_vs_forgetting",
    "save",
    "svg",
    "sweep_figures",
    "targets_per_stage",
]
