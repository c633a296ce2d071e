"""A job's own pictures of what its probes saw: every set of tokens over the stages, and the blocks after each stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lmm_forget.report.figures import INK, STYLE, legend, look, save
from lmm_forget.report.probes import PROGRESS, looks_of, set_name, where
from lmm_forget.report.rows import TINY

COLUMNS = 3


def probe_pictures(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write shift_per_stage and layers_per_stage, each .png and .svg, as far as there are readings for them."""
    drawn = {"shift_per_stage": shift_per_stage(results), "layers_per_stage": layers_per_stage(results)}
    return [
        path for name, figure in drawn.items() if figure is not None for path in save(figure, folder / name)
    ]


def shift_per_stage(results: Mapping[str, Any]) -> Figure | None:
    """Share of each token set on each set of prompts at the base, at milestones and after each stage."""
    looks = list(looks_of(results, "output_shift"))
    kinds = list(dict.fromkeys((each.reading["prompts"], each.reading["mode"]) for each in looks))
    if not kinds:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 2.4 * len(kinds) + 1.2), layout="constrained")
        axes = list(figure.subplots(len(kinds), 1, squeeze=False, sharex=True)[:, 0])
        names = ["base", *(stage["task"].removeprefix(TINY) for stage in results["stages"])]
        for (prompts, mode), panel in zip(kinds, axes, strict=True):
            found = [
                (each.when, each.reading["mass"])
                for each in looks
                if (each.reading["prompts"], each.reading["mode"]) == (prompts, mode)
            ]
            for place, name in enumerate(found[0][1]):
                colour, marker = look(place)
                panel.plot(
                    [when for when, _ in found],
                    [mass[name]["mean"] for _, mass in found],
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linewidth=1.2,
                    linestyle="--" if name.startswith("taught:") else "-",
                    label=f"taught by {set_name(name)}" if name.startswith("taught:") else set_name(name),
                )
            panel.set_title(f"Share of each set of tokens, {where(prompts, mode)}", fontsize=9, loc="left")
            panel.grid(axis="y", color=INK, alpha=0.18, linewidth=0.6)
            panel.tick_params(labelsize=8)
            panel.set_xticks(range(len(names)), names, fontsize=8)
        axes[-1].set_xlabel(PROGRESS, fontsize=8.5)
        legend(axes[0])
    return figure


def layers_per_stage(results: Mapping[str, Any]) -> Figure | None:
    """Norm of the change in logits that each layer's attention and MLP write, a panel per stage, on one scale."""
    looks = [each for each in looks_of(results, "residual_to_logit") if each.stage and each.step is None]
    looks = [each for each in looks if each.reading["prompts"] == looks[0].reading["prompts"]]
    if not looks:
        return None
    columns = min(COLUMNS, len(looks))
    rows = -(-len(looks) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * columns + 0.6, 2.1 * rows + 0.9), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for panel in list(grid.flat)[len(looks) :]:
            panel.set_visible(False)
        for place, (each, panel) in enumerate(zip(looks, grid.flat, strict=False)):
            for kind, label in (("attention", "attention"), ("mlp", "MLP")):
                colour, marker = look(0 if kind == "attention" else 1)
                values = each.reading["folded"][kind]
                panel.plot(
                    range(1, len(values) + 1), values, color=colour, marker=marker, markersize=4, label=label
                )
            task = results["stages"][each.stage - 1]["task"].removeprefix(TINY)
            panel.set_title(f"after {each.stage}: {task}", fontsize=9, loc="left")
            panel.grid(axis="y", color=INK, alpha=0.18, linewidth=0.6)
            panel.tick_params(labelsize=8)
            panel.set_xlabel("decoder layer", fontsize=8.5)
            if place % columns == 0:
                panel.set_ylabel("change in logits (norm)", fontsize=8.5)
        legend(grid[0][0])
    return figure
