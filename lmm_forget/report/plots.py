"""Pictures of one job and of a sweep, drawn by matplotlib without a display and without global state."""

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
from lmm_forget.report.experiment_settings import (
    ExperimentSetting,
    group_rows_by_setting,
    group_settings_by_model,
)
from lmm_forget.report.job_rows import (
    TINY_PREFIX,
    build_job_rows,
    format_learning_rate,
    format_points,
)
from lmm_forget.report.verdict import find_pareto_front

# Middle tones have enough contrast on a white and on a dark page; lines also differ in their markers.
PALETTE = ("#3b82d6", "#d9722e", "#1a9a78", "#c653a0", "#a5851f", "#8a6fd6", "#d64545", "#7d8590")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINE_DASHES = ("-", "--", ":", "-.")  # one per learning rate of a recipe
_LABEL_OFFSETS = ((6, 5), (6, -12), (-25, -12), (-25, 5))  # of a point's learning rate, in typographic points
PARETO_FRONT_LABEL = "best trade-offs"
PANEL_SIZE = (5.4, 3.8)
"""Width and height of a picture with one panel, in inches."""
TEXT_COLOUR = "#5b6168"  # embed_svg replaces it by the page's text colour
PLOT_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": TEXT_COLOUR,
    "axes.labelcolor": TEXT_COLOUR,
    "axes.titlecolor": TEXT_COLOUR,
    "xtick.color": TEXT_COLOUR,
    "ytick.color": TEXT_COLOUR,
    "text.color": TEXT_COLOUR,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    "svg.hashsalt": "lmm-forget",  # equal results give equal files
}


def save_job_plots(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write heldout_per_stage and targets_per_stage of one job, each as .png and .svg, into its folder."""
    figures = {
        "heldout_per_stage": plot_heldout_per_stage(group_rows_by_setting(build_job_rows([results]))),
        "targets_per_stage": plot_targets_per_stage(results),
    }
    return [path for name, figure in figures.items() for path in save_figure(figure, folder / name)]


def plot_heldout_per_stage(settings: Sequence[ExperimentSetting]) -> Figure:
    """Held-out mean at the base and after each stage; a line per setting, with the interval of each change.

    Jobs of one setting are thin lines behind their mean. Each model has its own panel.
    """
    groups = group_settings_by_model(settings)
    labels = _list_setting_labels(groups)
    title = "Held-out mean per stage (bars: 95 % interval of the change)"
    with matplotlib.rc_context(PLOT_STYLE):
        figure, panels = create_panels_by_model(groups, "held-out mean (points)", title)
        for axes, model_settings in zip(panels, groups, strict=True):
            _plot_stage_lines(axes, model_settings, labels)
        add_legend(panels)
    return figure


def _plot_stage_lines(axes: Axes, settings: Sequence[ExperimentSetting], labels: Sequence[str]) -> None:
    """Draw one model's settings; a setting's colour follows from the position of its label in `labels`."""
    seen_labels: list[str] = []
    for setting in settings:
        base = setting.heldout_base
        if base is None:
            continue
        colour, marker = choose_colour_and_marker(labels.index(setting.first_row.label_within_model))
        dashes = _LINE_DASHES[seen_labels.count(setting.first_row.label_within_model) % len(_LINE_DASHES)]
        seen_labels.append(setting.first_row.label_within_model)
        has_several_jobs = len(setting.rows) > 1
        for row in setting.rows if has_several_jobs else ():
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
        error_bars = [_compute_error_bar(change) for change in changes]
        axes.errorbar(
            range(len(means)),
            means,
            yerr=[[low for low, _ in error_bars], [high for _, high in error_bars]],
            label=setting.name_within_model,
            linestyle=dashes,
            color=colour,
            marker=marker,
            elinewidth=0.7,
            linewidth=1.6,
            markersize=4,
        )
        for stage, (mean, change) in enumerate(zip(means, changes, strict=True)):
            moment = f"after {stage}: {setting.stage_names[stage - 1]}" if stage else "base"
            change_text = f", {format_change(change)} since the base" if stage else ""
            add_tooltip(axes, stage, mean, f"{setting.name} - {moment}: {mean:.1f}{change_text}")
    orders = {setting.tasks for setting in settings}
    stages = max((len(setting.stage_names) for setting in settings), default=0)
    is_same_order = len(orders) == 1 and None not in orders
    _label_stage_ticks(axes, settings[0].stage_names if is_same_order else [f"stage {s}" for s in range(1, stages + 1)])


def plot_targets_per_stage(results: Mapping[str, Any]) -> Figure:
    """Score of each target at the base and after each stage; a ring marks the stages that trained it."""
    with matplotlib.rc_context(PLOT_STYLE):
        figure, axes = create_axes("score (points)", "Targets after each stage (ring: just trained)")
        stages = results["stages"]
        scores = [results["base"]["scores"], *(stage["scores"] for stage in stages)]
        trained_tasks = [stage["task"] for stage in stages]
        for place, task in enumerate(dict.fromkeys(trained_tasks)):
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
                label=task.removeprefix(TINY_PREFIX),
            )
            for stage, value in enumerate(values):
                add_tooltip(
                    axes,
                    stage,
                    value,
                    f"{task} {f'after stage {stage}' if stage else 'at the base'}: {value:.1f}",
                )
            ringed_stages = [stage for stage, name in enumerate(trained_tasks, start=1) if name == task]
            axes.scatter(
                ringed_stages,
                [values[stage] for stage in ringed_stages],
                s=90,
                facecolors="none",
                edgecolors=colour,
                zorder=3,
            )
        axes.set_ylim(-4, 104)
        _label_stage_ticks(axes, trained_tasks)
        add_legend(axes)
    return figure


def plot_learning_vs_forgetting(settings: Sequence[ExperimentSetting]) -> Figure:
    """Target learning against final held-out forgetting; a point per setting, with both intervals.

    A line joins the learning rates of one recipe; a dashed line joins the settings that no other beats in both. Jobs of
    one setting are small points around their mean. Each model has its own panel.
    """
    groups = group_settings_by_model(settings)
    labels = _list_setting_labels(groups)
    with matplotlib.rc_context(PLOT_STYLE):
        figure, panels = create_panels_by_model(
            groups, "held-out forgetting, final (points)", "What was learned, and what it cost"
        )
        for axes, model_settings in zip(panels, groups, strict=True):
            axes.set_xlabel("target learning (points)")
            axes.axhline(0, color=TEXT_COLOUR, linewidth=0.6, alpha=0.6)
            _plot_trade_offs(axes, model_settings, labels)
        add_legend(panels)
    return figure


def _plot_trade_offs(axes: Axes, settings: Sequence[ExperimentSetting], labels: Sequence[str]) -> None:
    """Draw one model's settings; a setting's colour follows from the position of its label in `labels`."""
    lines: dict[str, list[ExperimentSetting]] = {}
    for setting in settings:
        if setting.figures["final"]["value"] is not None and setting.figures["learning"]["value"] is not None:
            lines.setdefault(setting.first_row.label_within_model, []).append(setting)
    for label, line in lines.items():
        place = labels.index(label)
        colour, marker = choose_colour_and_marker(place)
        ordered = sorted(line, key=lambda s: s.first_row.main_learning_rate)
        _plot_rate_line(axes, ordered, colour, marker, label, _LABEL_OFFSETS[place % 4])
    pareto_front = find_pareto_front([setting for line in lines.values() for setting in line])
    if len(pareto_front) > 1:
        x, y = ([s.figures[name]["value"] for s in pareto_front] for name in ("learning", "final"))
        axes.plot(x, y, color=TEXT_COLOUR, linestyle=(0, (4, 3)), linewidth=0.9, zorder=1, label=PARETO_FRONT_LABEL)


def _list_setting_labels(groups: Sequence[Sequence[ExperimentSetting]]) -> list[str]:
    """The labels that have a colour of their own, in order of appearance."""
    return list(dict.fromkeys(setting.first_row.label_within_model for group in groups for setting in group))


def save_figure(figure: Figure, path_stem: Path, svg_document: str | None = None) -> list[Path]:
    """Write `path_stem`.png (on white) and `path_stem`.svg (no background); returns their paths.

    `svg_document` is the result of `render_svg`, if the figure was already rendered.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(PLOT_STYLE):
        figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    png = write_atomic(path_stem.with_name(f"{path_stem.name}.png"), buffer.getvalue())
    titled = re.sub(r'<g id="tip:([^"]*)">', r"<g><title>\1</title>", svg_document or render_svg(figure))
    return [png, write_atomic(path_stem.with_name(f"{path_stem.name}.svg"), titled.encode())]


def render_svg(figure: Figure) -> str:
    """The picture as an SVG document without a background; equal figures give equal text."""
    buffer = io.StringIO()
    with matplotlib.rc_context(PLOT_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def embed_svg(svg_document: str, description: str, id_prefix: str) -> str:
    """An SVG document as an element for an HTML page, with the page's text colour and tooltips in `data-tip`.

    `id_prefix` begins all ids in it, because several pictures on a page must not share them.
    """
    element = svg_document[svg_document.index("<svg") :].replace(TEXT_COLOUR, "currentColor")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.S)
    element = re.sub(r'<g id="tip:([^"]*)">', r'<g class="tip" tabindex="0" data-tip="\1">', element)
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{id_prefix}-", element)
    return element.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)


def add_tooltip(axes: Axes, x: float, y: float, text: str) -> None:
    """Add an invisible point that shows `text` when a reader points at it."""
    axes.plot([x], [y], marker="o", markersize=13, alpha=0.0, gid=f"tip:{text}", zorder=9)


def format_change(estimate: Mapping[str, Any]) -> str:
    """`-79.9 [-81.6, -78.1]`; the value alone without an interval."""
    interval_text = (
        "" if estimate["low"] is None else f" [{format_points(estimate['low'])}, {format_points(estimate['high'])}]"
    )
    return f"{format_points(estimate['value'])}{interval_text}"


def create_axes(ylabel: str, title: str) -> tuple[Figure, Axes]:
    """A picture of `PANEL_SIZE` with one panel."""
    figure = Figure(figsize=PANEL_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="y", color=TEXT_COLOUR, alpha=0.18, linewidth=0.6)
    return figure, axes


def create_panels_by_model(
    groups: Sequence[Sequence[ExperimentSetting]], ylabel: str, title: str
) -> tuple[Figure, list[Axes]]:
    """A picture with a panel per model, all on one scale; each panel has its model's name if there are several."""
    if len(groups) < 2:
        figure, axes = create_axes(ylabel, title)
        return figure, [axes]
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(3.5 * columns, 3.4 * lines + 0.6), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for spare in panels[len(groups) :]:
        spare.remove()
    for place, (axes, group) in enumerate(zip(panels, groups, strict=False)):
        axes.set_title(str(group[0].first_row.model), fontsize=10, loc="left")
        axes.grid(axis="y", color=TEXT_COLOUR, alpha=0.18, linewidth=0.6)
        axes.tick_params(labelbottom=True)
        if place % columns == 0:
            axes.set_ylabel(ylabel)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", color=TEXT_COLOUR)
    return figure, panels[: len(groups)]


def _plot_rate_line(
    axes: Axes,
    settings: Sequence[ExperimentSetting],
    colour: str,
    marker: str,
    label: str,
    label_offset: tuple[int, int],
) -> None:
    """Draw one recipe's settings, sorted by learning rate, as a line whose points are labelled with their rates."""
    learning = [setting.figures["learning"] for setting in settings]
    final = [setting.figures["final"] for setting in settings]
    x, y = [estimate["value"] for estimate in learning], [estimate["value"] for estimate in final]
    across, up = (
        [_compute_error_bar(estimate) for estimate in learning],
        [_compute_error_bar(estimate) for estimate in final],
    )
    for setting in settings:
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
    for setting, left, top in zip(settings, x, y, strict=True):
        change_texts = [format_change(setting.figures[name]) for name in ("learning", "final")]
        add_tooltip(axes, left, top, f"{setting.name}: learning {change_texts[0]}, held-out {change_texts[1]}")
        if len(settings) > 1:
            axes.annotate(
                format_learning_rate(setting.first_row.main_learning_rate),
                (left, top),
                textcoords="offset points",
                xytext=label_offset,
                fontsize=8,
                color=colour,
            )


def _compute_error_bar(estimate: Mapping[str, Any]) -> tuple[float, float]:
    """Lengths of an error bar below and above the value; (0, 0) without an interval.

    Also (0, 0) over two jobs: their interval would be too wide for the picture, and both jobs are drawn anyway.
    """
    if estimate["low"] is None or (estimate.get("over") == "jobs" and estimate["jobs"] < 3):
        return 0.0, 0.0
    value = estimate["value"]
    return max(0.0, value - estimate["low"]), max(0.0, estimate["high"] - value)


def choose_colour_and_marker(index: int) -> tuple[str, str]:
    """Colour and marker of recipe number `index`.

    Past the palette's end, colours repeat with other markers, so that no two recipes look the same.
    """
    return PALETTE[index % len(PALETTE)], MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]


def _label_stage_ticks(axes: Axes, stages: Sequence[str]) -> None:
    names = ["base", *(stage.removeprefix(TINY_PREFIX) for stage in stages)]
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right", rotation_mode="anchor")


def add_legend(panels: Axes | Sequence[Axes]) -> None:
    """Add a legend below the picture, where it hides no point; a label that several panels share appears once."""
    handles_by_label: dict[str, Any] = {}
    for axes in [panels] if isinstance(panels, Axes) else panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles_by_label.setdefault(label, handle)
        figure = axes.figure
    if not handles_by_label or not isinstance(figure, Figure):
        return
    labels = sorted(handles_by_label, key=lambda label: label == PARETO_FRONT_LABEL)
    width = 60 * figure.get_size_inches()[0] / PANEL_SIZE[0]  # characters that fit beside each other
    columns = max(1, min(4, int(width // (max(map(len, labels)) + 6))))
    lines = -(-len(labels) // columns)
    if lines > 4:  # make the figure higher, so that the panels keep their size
        figure.set_figheight(figure.get_figheight() + 0.2 * (lines - 4))
    handles = [handles_by_label[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))
