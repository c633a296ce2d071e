"""Pictures of one job's probe readings: every token set over the stages, and the decoder blocks after each stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lmm_forget.report.job_rows import TINY_PREFIX
from lmm_forget.report.plots import (
    PLOT_STYLE,
    TEXT_COLOUR,
    add_legend,
    choose_colour_and_marker,
    save_figure,
)
from lmm_forget.report.probe_plots import (
    LEARNED_SET_PREFIX,
    PROGRESS_AXIS_LABEL,
    format_prompts_label,
    format_token_set_name,
    iterate_readings,
)

MAX_COLUMNS = 3


def save_probe_plots(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write shift_per_stage and layers_per_stage, each as .png and .svg, if the job has readings for them."""
    figures = {
        "shift_per_stage": plot_shift_per_stage(results),
        "layers_per_stage": plot_layers_per_stage(results),
    }
    return [
        path for name, figure in figures.items() if figure is not None for path in save_figure(figure, folder / name)
    ]


def plot_shift_per_stage(results: Mapping[str, Any]) -> Figure | None:
    """Share of each token set at the base, at milestones and after each stage; a panel per prompts and mode."""
    readings = list(iterate_readings(results, "output_shift"))
    prompt_modes = list(dict.fromkeys((each.reading["prompts"], each.reading["mode"]) for each in readings))
    if not prompt_modes:
        return None
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(6.2, 2.4 * len(prompt_modes) + 1.2), layout="constrained")
        axes = list(figure.subplots(len(prompt_modes), 1, squeeze=False, sharex=True)[:, 0])
        names = ["base", *(stage["task"].removeprefix(TINY_PREFIX) for stage in results["stages"])]
        for (prompts, mode), panel in zip(prompt_modes, axes, strict=True):
            positions_and_masses = [
                (each.axis_position, each.reading["mass"])
                for each in readings
                if (each.reading["prompts"], each.reading["mode"]) == (prompts, mode)
            ]
            for place, name in enumerate(positions_and_masses[0][1]):
                colour, marker = choose_colour_and_marker(place)
                panel.plot(
                    [when for when, _ in positions_and_masses],
                    [mass[name]["mean"] for _, mass in positions_and_masses],
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linewidth=1.2,
                    linestyle="--" if name.startswith(LEARNED_SET_PREFIX) else "-",
                    label=f"trained on {format_token_set_name(name)}"
                    if name.startswith(LEARNED_SET_PREFIX)
                    else format_token_set_name(name),
                )
            panel.set_title(
                f"Share of each set of tokens, {format_prompts_label(prompts, mode)}", fontsize=9, loc="left"
            )
            panel.grid(axis="y", color=TEXT_COLOUR, alpha=0.18, linewidth=0.6)
            panel.tick_params(labelsize=8)
            panel.set_xticks(range(len(names)), names, fontsize=8)
        axes[-1].set_xlabel(PROGRESS_AXIS_LABEL, fontsize=8.5)
        add_legend(axes[0])
    return figure


def plot_layers_per_stage(results: Mapping[str, Any]) -> Figure | None:
    """Norm of the change in logits from each layer's attention and MLP; a panel per stage, all on one scale."""
    readings = [each for each in iterate_readings(results, "residual_to_logit") if each.stage and each.step is None]
    readings = [each for each in readings if each.reading["prompts"] == readings[0].reading["prompts"]]
    if not readings:
        return None
    columns = min(MAX_COLUMNS, len(readings))
    rows = -(-len(readings) // columns)
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(2.6 * columns + 0.6, 2.1 * rows + 0.9), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for panel in list(grid.flat)[len(readings) :]:
            panel.set_visible(False)
        for place, (each, panel) in enumerate(zip(readings, grid.flat, strict=False)):
            for kind, label in (("attention", "attention"), ("mlp", "MLP")):
                colour, marker = choose_colour_and_marker(0 if kind == "attention" else 1)
                values = each.reading["folded"][kind]
                panel.plot(range(1, len(values) + 1), values, color=colour, marker=marker, markersize=4, label=label)
            task = results["stages"][each.stage - 1]["task"].removeprefix(TINY_PREFIX)
            panel.set_title(f"after {each.stage}: {task}", fontsize=9, loc="left")
            panel.grid(axis="y", color=TEXT_COLOUR, alpha=0.18, linewidth=0.6)
            panel.tick_params(labelsize=8)
            panel.set_xlabel("decoder layer", fontsize=8.5)
            if place % columns == 0:
                panel.set_ylabel("change in logits (norm)", fontsize=8.5)
        add_legend(grid[0][0])
    return figure
