"""Pictures of one job and of a sweep, drawn by matplotlib without a screen and without global state."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmm_forget.files import write_atomic
from lmm_forget.report.rows import TINY, Row, points, rate, sweep_rows
from lmm_forget.report.settings import Setting, by_model, settings_of
from lmm_forget.report.verdict import front

# Middle tones that keep their contrast on white and on a dark page; markers tell the lines apart as well.
PALETTE = ("#3b82d6", "#d9722e", "#1a9a78", "#c653a0", "#a5851f", "#8a6fd6", "#d64545", "#7d8590")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", ":", "-.")  # tells the learning rates of one recipe apart
_BESIDE = ((6, 5), (6, -12), (-25, -12), (-25, 5))  # where a point's learning rate stands
FRONT = "best trade-offs"
SIZE = (5.4, 3.8)
"""Inches of a picture with one panel."""
INK = "#5b6168"  # replaced by the page's own colour where a picture is set into HTML
STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
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


def heldout_per_stage(rows: Sequence[Row]) -> Figure:
    """Held-out mean at the base and after each stage, a line per setting, with the interval of each change.

    Jobs that differ in seed or order alone are thin lines behind their mean. A panel for each model.
    """
    groups = by_model(settings_of(rows))
    labels = _labels(groups)
    title = "Held-out mean per stage (bars: 95 % interval of the change)"
    with matplotlib.rc_context(STYLE):
        figure, panels = new_panels(groups, "held-out mean (points)", title)
        for axes, settings in zip(panels, groups, strict=True):
            _stage_lines(axes, settings, labels)
        legend(panels)
    return figure


def _stage_lines(axes: Axes, settings: Sequence[Setting], labels: Sequence[str]) -> None:
    """One model's settings, coloured by their place in `labels`."""
    seen: list[str] = []
    for setting in settings:
        base = setting.heldout_base
        if base is None:
            continue
        colour, marker = look(labels.index(setting.first.within))
        dashes = _DASHES[seen.count(setting.first.within) % len(_DASHES)]
        seen.append(setting.first.within)
        several = len(setting.rows) > 1
        for row in setting.rows if several else ():
            if row.heldout_base is not None:
                line = [
                    row.heldout_base,
                    *(row.heldout_base + (s["value"] or 0) for s in row.heldout_per_stage),
                ]
                axes.plot(range(len(line)), line, color=colour, linewidth=0.5, alpha=0.35)
        changes: list[Mapping[str, Any]] = [
            {"value": 0.0, "low": None, "high": None},
            *(stage for stage in setting.heldout_per_stage if stage["value"] is not None),
        ]
        means = [base + change["value"] for change in changes]
        bars = [_arms(change) for change in changes]
        axes.errorbar(
            range(len(means)),
            means,
            yerr=[[low for low, _ in bars], [high for _, high in bars]],
            label=setting.within,
            linestyle=dashes,
            color=colour,
            marker=marker,
            elinewidth=0.7,
            linewidth=1.6,
            markersize=4,
        )
        for stage, (mean, change) in enumerate(zip(means, changes, strict=True)):
            when = f"after {stage}: {setting.stages[stage - 1]}" if stage else "base"
            told = f", {told_change(change)} since the base" if stage else ""
            tip(axes, stage, mean, f"{setting.name} - {when}: {mean:.1f}{told}")
    orders = {setting.tasks for setting in settings}
    stages = max((len(setting.stages) for setting in settings), default=0)
    same = len(orders) == 1 and None not in orders
    _stage_ticks(axes, settings[0].stages if same else [f"stage {s}" for s in range(1, stages + 1)])


def targets_per_stage(results: Mapping[str, Any]) -> Figure:
    """Score of each target at the base and after each stage; a ring marks the stages that taught it."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes("score (points)", "Targets after each stage (ring: just taught)")
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
                label=task.removeprefix(TINY),
            )
            for stage, value in enumerate(values):
                tip(
                    axes,
                    stage,
                    value,
                    f"{task} {f'after stage {stage}' if stage else 'at the base'}: {value:.1f}",
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
        legend(axes)
    return figure


def learning_vs_forgetting(rows: Sequence[Row]) -> Figure:
    """Target learning against final held-out forgetting, a point per setting with both intervals.

    A line joins the learning rates of one recipe; the dashed one joins the settings that no other beats in both.
    Jobs that differ in seed or order alone are small points around their mean. A panel for each model.
    """
    groups = by_model(settings_of(rows))
    labels = _labels(groups)
    with matplotlib.rc_context(STYLE):
        figure, panels = new_panels(
            groups, "held-out forgetting, final (points)", "What was learned, and what it cost"
        )
        for axes, settings in zip(panels, groups, strict=True):
            axes.set_xlabel("target learning (points)")
            axes.axhline(0, color=INK, linewidth=0.6, alpha=0.6)
            _trade_offs(axes, settings, labels)
        legend(panels)
    return figure


def _trade_offs(axes: Axes, settings: Sequence[Setting], labels: Sequence[str]) -> None:
    """One model's settings, coloured by their place in `labels`."""
    lines: dict[str, list[Setting]] = {}
    for setting in settings:
        if setting.figures["final"]["value"] is not None and setting.figures["learning"]["value"] is not None:
            lines.setdefault(setting.first.within, []).append(setting)
    for label, line in lines.items():
        place = labels.index(label)
        colour, marker = look(place)
        ordered = sorted(line, key=lambda s: _rate(s.first))
        _frontier(axes, ordered, colour, marker, label, _BESIDE[place % 4])
    best = front([setting for line in lines.values() for setting in line])
    if len(best) > 1:
        x, y = ([s.figures[name]["value"] for s in best] for name in ("learning", "final"))
        axes.plot(x, y, color=INK, linestyle=(0, (4, 3)), linewidth=0.9, zorder=1, label=FRONT)


def _labels(groups: Sequence[Sequence[Setting]]) -> list[str]:
    """What has a colour of its own: recipes, and what tells their settings apart within a model."""
    return list(dict.fromkeys(setting.first.within for group in groups for setting in group))


def save(figure: Figure, stem: Path, document: str | None = None) -> list[Path]:
    """Write `<stem>.png` (on white) and `<stem>.svg` (no background); returns their paths.

    `document` is the figure's `svg`, where it was drawn already.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    png = write_atomic(stem.with_name(f"{stem.name}.png"), buffer.getvalue())
    titled = re.sub(r'<g id="tip:([^"]*)">', r"<g><title>\1</title>", document or svg(figure))
    return [png, write_atomic(stem.with_name(f"{stem.name}.svg"), titled.encode())]


def svg(figure: Figure) -> str:
    """The picture as an SVG document without a background; equal figures give equal text."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def inline(document: str, description: str, name: str) -> str:
    """A figure's `svg` as an element for an HTML page, its ink in the page's colour, its tips in `data-tip`.

    `name` begins the ids in it: several figures on a page must not share them.
    """
    element = document[document.index("<svg") :].replace(INK, "currentColor")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.S)
    element = re.sub(r'<g id="tip:([^"]*)">', r'<g class="tip" tabindex="0" data-tip="\1">', element)
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", element)
    return element.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)


def tip(axes: Axes, x: float, y: float, text: str) -> None:
    """An invisible point that says `text` when a reader points at it."""
    axes.plot([x], [y], marker="o", markersize=13, alpha=0.0, gid=f"tip:{text}", zorder=9)


def told_change(estimate: Mapping[str, Any]) -> str:
    """`-79.9 [-81.6, -78.1]`, the value alone where there is no interval."""
    between = "" if estimate["low"] is None else f" [{points(estimate['low'])}, {points(estimate['high'])}]"
    return f"{points(estimate['value'])}{between}"


def new_axes(ylabel: str, title: str) -> tuple[Figure, Axes]:
    """One picture of the usual size, with its axis and title."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="y", color=INK, alpha=0.18, linewidth=0.6)
    return figure, axes


def new_panels(groups: Sequence[Sequence[Setting]], ylabel: str, title: str) -> tuple[Figure, list[Axes]]:
    """A picture of the usual size, or panels of one scale beside each other, each named by its model."""
    if len(groups) < 2:
        figure, axes = new_axes(ylabel, title)
        return figure, [axes]
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(3.5 * columns, 3.4 * lines + 0.6), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for spare in panels[len(groups) :]:
        spare.remove()
    for place, (axes, group) in enumerate(zip(panels, groups, strict=False)):
        axes.set_title(str(group[0].first.model), fontsize=10, loc="left")
        axes.grid(axis="y", color=INK, alpha=0.18, linewidth=0.6)
        axes.tick_params(labelbottom=True)
        if place % columns == 0:
            axes.set_ylabel(ylabel)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", color=INK)
    return figure, panels[: len(groups)]


def _frontier(
    axes: Axes, line: Sequence[Setting], colour: str, marker: str, label: str, beside: tuple[int, int]
) -> None:
    """One recipe's settings in the order of their learning rates, each named by its rate."""
    learning = [setting.figures["learning"] for setting in line]
    final = [setting.figures["final"] for setting in line]
    x, y = [estimate["value"] for estimate in learning], [estimate["value"] for estimate in final]
    across, up = [_arms(estimate) for estimate in learning], [_arms(estimate) for estimate in final]
    for setting in line:
        jobs = [row for row in setting.rows if row.figures["final"]["value"] is not None]
        if len(jobs) > 1:
            axes.scatter(
                [row.figures["learning"]["value"] for row in jobs],
                [row.figures["final"]["value"] for row in jobs],
                s=9,
                color=colour,
                alpha=0.35,
                linewidths=0,
            )
    axes.errorbar(
        x,
        y,
        xerr=[[low for low, _ in across], [high for _, high in across]],
        yerr=[[low for low, _ in up], [high for _, high in up]],
        label=label,
        capsize=0,
        color=colour,
        marker=marker,
        elinewidth=0.7,
        linewidth=1.4,
        markersize=6,
    )
    for setting, left, top in zip(line, x, y, strict=True):
        told = [told_change(setting.figures[name]) for name in ("learning", "final")]
        tip(axes, left, top, f"{setting.name}: learning {told[0]}, held-out {told[1]}")
        if len(line) > 1:
            axes.annotate(
                rate(_rate(setting.first)),
                (left, top),
                textcoords="offset points",
                xytext=beside,
                fontsize=8,
                color=colour,
            )


def _arms(estimate: Mapping[str, Any]) -> tuple[float, float]:
    """Lengths of an error bar below and above the value; none without an interval.

    None over two jobs either: their interval is so wide that nothing else could be seen, and both jobs are drawn.
    """
    if estimate["low"] is None or (estimate.get("over") == "jobs" and estimate["jobs"] < 3):
        return 0.0, 0.0
    value = estimate["value"]
    return max(0.0, value - estimate["low"]), max(0.0, estimate["high"] - value)


def look(place: int) -> tuple[str, str]:
    """Colour and marker of the recipe at this place.

    Past the palette's end colours start again with other markers, so that no two look the same.
    """
    return PALETTE[place % len(PALETTE)], MARKERS[(place + place // len(PALETTE)) % len(MARKERS)]


def _rate(row: Row) -> float:
    return row.learning_rate or row.vision_learning_rate or 0.0


def _stage_ticks(axes: Axes, stages: Sequence[str]) -> None:
    names = ["base", *(stage.removeprefix(TINY) for stage in stages)]
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right", rotation_mode="anchor")


def legend(panels: Axes | Sequence[Axes]) -> None:
    """A legend under the picture, where it hides no point; what several panels share stands there once."""
    found: dict[str, Any] = {}
    for axes in [panels] if isinstance(panels, Axes) else panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
        figure = axes.figure
    if not found or not isinstance(figure, Figure):
        return
    labels = sorted(found, key=lambda label: label == FRONT)
    width = 60 * figure.get_size_inches()[0] / SIZE[0]  # characters that fit beside each other
    columns = max(1, min(4, int(width // (max(map(len, labels)) + 6))))
    lines = -(-len(labels) // columns)
    if lines > 4:  # room that the legend takes is not the picture's to give
        figure.set_figheight(figure.get_figheight() + 0.2 * (lines - 4))
    handles = [found[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))
