"""Pictures of a sweep's probe readings: the shift over time, the layers behind it, and its relation to forgetting.

They come from the `probes` entries of results.json (docs/results_schema.md); what a job did not record is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmm_forget.metrics.shift_correlation import compute_correlations
from lmm_forget.report.experiment_settings import ExperimentSetting
from lmm_forget.report.job_rows import TINY_PREFIX
from lmm_forget.report.plots import (
    PLOT_STYLE,
    TEXT_COLOUR,
    add_legend,
    add_tooltip,
    choose_colour_and_marker,
)

Results = Mapping[str, Mapping[str, Any]]
PromptsAndMode = tuple[str, str]  # prompts, mode
MAX_PANELS = 6
PROGRESS_AXIS_LABEL = "skill just trained (between skills: steps within the stage, on a logarithmic scale)"
LEARNED_SET_PREFIX = "trained:"
"""Begins the name of a token set that was learned from a trained task's answers."""
MODE_LABELS = {"free": "own answers", "forced": "along given answers"}
_LAYER_UNITS = (
    ("folded", "logits, final norm folded in"),
    ("shared", "logits, the base's head"),
    ("norm", "logits"),
)


@dataclass(frozen=True)
class TimedReading:
    """A reading with its time: `stage` (0: base), `step` (None: after the stage), and its place on the time axis."""

    stage: int
    step: int | None
    axis_position: float
    reading: Mapping[str, Any]


def plot_probe_readings(results: Results, settings: Sequence[ExperimentSetting]) -> dict[str, Figure]:
    """The pictures probe_shift, probe_layers and probe_vs_forgetting, each only if a job has the readings for it."""
    jobs = [results[row.job] for setting in settings for row in setting.rows]
    figures: dict[str, Figure] = {}
    keys = list(
        dict.fromkeys(
            (each.reading["prompts"], each.reading["mode"]) for job in jobs for each in iterate_shift_readings(job)
        )
    )
    if keys:
        figures["probe_shift"] = _plot_shift(results, settings, keys)
        scatter_figure = _plot_shift_vs_forgetting(results, settings, keys)
        if scatter_figure is not None:
            figures["probe_vs_forgetting"] = scatter_figure
    if any(True for job in jobs for _ in iterate_readings(job, "residual_to_logit")):
        figures["probe_layers"] = _plot_layers(results, settings)
    return figures


def iterate_shift_readings(job_results: Mapping[str, Any]) -> Iterator[TimedReading]:
    """The output-shift readings of a job, ordered by time."""
    yield from iterate_readings(job_results, "output_shift")


def choose_plotted_token_set(job_results: Mapping[str, Any], key: PromptsAndMode) -> str | None:
    """The token set whose mass is drawn: "number" if it was probed, else the first; None without any."""
    for timed_reading in iterate_shift_readings(job_results):
        if (
            timed_reading.reading["prompts"],
            timed_reading.reading["mode"],
        ) == key and timed_reading.reading.get("mass"):
            return "number" if "number" in timed_reading.reading["mass"] else next(iter(timed_reading.reading["mass"]))
    return None


def iterate_readings(job_results: Mapping[str, Any], probe_name: str) -> Iterator[TimedReading]:
    """The readings of one probe in a job, ordered by time."""
    for stage, entry in enumerate((job_results["base"], *job_results["stages"])):
        probes = entry.get("probes") or {}
        steps = max(entry.get("steps") or 1, 1)
        for milestone in probes.get("milestones") or []:
            # The first steps change most, so milestones lie on a logarithmic scale between two stages.
            log_fraction = math.log1p(milestone["step"]) / math.log1p(max(steps, milestone["step"]))
            for reading in milestone.get("readings") or []:
                if reading.get("probe") == probe_name and log_fraction < 1:
                    yield TimedReading(stage, milestone["step"], stage - 1 + log_fraction, reading)
        for reading in probes.get("readings") or []:
            if reading.get("probe") == probe_name:
                yield TimedReading(stage, None, float(stage), reading)


def _plot_shift(results: Results, settings: Sequence[ExperimentSetting], keys: Sequence[PromptsAndMode]) -> Figure:
    """Mass of a token set, and the KL divergence from the base, over stages and milestones; a line per setting."""
    panels: list[tuple[PromptsAndMode, str]] = []
    for key in keys:
        panels.append((key, "mass"))
        if any(
            each.reading.get("kl") is not None
            for setting in settings
            for row in setting.rows
            for each in iterate_shift_readings(results[row.job])
            if (each.reading["prompts"], each.reading["mode"]) == key
        ):
            panels.append((key, "kl"))
    panels = panels[:MAX_PANELS]
    labels = [setting.name for setting in settings]
    with matplotlib.rc_context(PLOT_STYLE):
        figure, axes = _create_panels(len(panels), 2.3)
        for (key, quantity), panel in zip(panels, axes, strict=True):
            prompts, mode = key
            for place, setting in enumerate(settings):
                jobs = [results[row.job] for row in setting.rows]
                curve = _compute_shift_curve(jobs, key, quantity)
                if not curve:
                    continue
                colour, marker = choose_colour_and_marker(place)
                x, y = [when for when, _, _ in curve], [value for _, value, _ in curve]
                panel.plot(x, y, color=colour, linewidth=1.4, label=labels[place])
                for stage in (True, False):  # full: after a stage; small and hollow: within one
                    selected_points = [(when, value) for when, value, _ in curve if (when == int(when)) == stage]
                    panel.plot(
                        [when for when, _ in selected_points],
                        [value for _, value in selected_points],
                        color=colour,
                        marker=marker,
                        markersize=4.5 if stage else 3,
                        markerfacecolor=colour if stage else "none",
                        linestyle="none",
                    )
                for when, value, moment in curve:
                    add_tooltip(panel, when, value, f"{setting.name} - {moment}: {value:.3g}")
            name = next(
                (n for s in settings for r in s.rows if (n := choose_plotted_token_set(results[r.job], key))), ""
            )
            quantity_label = (
                f"share of {format_token_set_name(name)} tokens" if quantity == "mass" else "KL from the base (nats)"
            )
            panel.set_title(f"{quantity_label}, {format_prompts_label(prompts, mode)}", fontsize=9, loc="left")
            stages = max(len(setting.stage_names) for setting in settings)
            is_same_order = len({setting.tasks for setting in settings}) == 1 and settings[0].tasks
            names = settings[0].stage_names if is_same_order else [f"stage {s}" for s in range(1, stages + 1)]
            panel.set_xticks(range(len(names) + 1), ["base", *(n.removeprefix(TINY_PREFIX) for n in names)], fontsize=8)
        axes[-1].set_xlabel(PROGRESS_AXIS_LABEL, fontsize=8.5)
        if len(settings) > 1:
            add_legend(axes[0])
    return figure


def _compute_shift_curve(
    jobs: Sequence[Mapping[str, Any]], key: PromptsAndMode, quantity: str
) -> list[tuple[float, float, str]]:
    """(place on the time axis, mean over jobs, name of the moment), ordered by time."""
    values_by_moment: dict[tuple[float, str], list[float]] = {}
    for job in jobs:
        name = choose_plotted_token_set(job, key)
        for timed_reading in iterate_shift_readings(job):
            value = (
                _get_quantity(timed_reading.reading, quantity, name)
                if _has_prompts_and_mode(timed_reading.reading, key)
                else None
            )
            if value is not None:
                moment = "base" if timed_reading.stage == 0 else f"stage {timed_reading.stage}"
                moment += "" if timed_reading.step is None else f", step {timed_reading.step}"
                values_by_moment.setdefault((timed_reading.axis_position, moment), []).append(value)
    return [(when, mean(values), moment) for (when, moment), values in sorted(values_by_moment.items())]


def _plot_layers(results: Results, settings: Sequence[ExperimentSetting]) -> Figure:
    """Norm of the change in logits from each layer, after the last stage (thin lines: after earlier stages)."""
    shown_settings = [
        setting
        for setting in settings
        if any(
            each.stage and each.step is None
            for each in iterate_readings(results[setting.first_row.job], "residual_to_logit")
        )
    ][:MAX_PANELS]
    with matplotlib.rc_context(PLOT_STYLE):
        figure, axes = _create_panels(len(shown_settings), 2.1)
        for setting, panel in zip(shown_settings, axes, strict=True):
            readings = [
                timed_reading
                for timed_reading in iterate_readings(results[setting.first_row.job], "residual_to_logit")
                if timed_reading.stage and timed_reading.step is None
            ]
            last_prompts = readings[-1].reading["prompts"]
            readings = [each for each in readings if each.reading["prompts"] == last_prompts]
            variant, unit = next((p for p in _LAYER_UNITS if readings[-1].reading.get(p[0])), _LAYER_UNITS[-1])
            for place, (side, label) in enumerate((("attention", "attention"), ("mlp", "MLP"))):
                colour, marker = choose_colour_and_marker(place)
                for timed_reading in readings:
                    values = (timed_reading.reading.get(variant) or {}).get(side)
                    if not values:
                        continue
                    last = timed_reading is readings[-1]
                    panel.plot(
                        range(1, len(values) + 1),
                        values,
                        color=colour,
                        marker=marker if last else None,
                        markersize=4,
                        linewidth=1.6 if last else 0.6,
                        alpha=1 if last else 0.4,
                        label=label if last else None,
                    )
                    for layer, value in enumerate(values if last else [], start=1):
                        add_tooltip(panel, layer, value, f"{setting.name} - layer {layer}, {side}: {value:.3g}")
            panel.set_ylabel(f"norm of the change in\n{unit}", fontsize=8)
            after = setting.first_row.tasks[readings[-1].stage - 1].removeprefix(TINY_PREFIX)
            earlier = " (thin: after earlier stages)" if len(readings) > 1 else ""
            seed = f" seed {results[setting.first_row.job]['config'].get('seed')}" if len(setting.rows) > 1 else ""
            prompts = readings[-1].reading["prompts"].removeprefix(TINY_PREFIX)
            title = f"{setting.name}{seed}, {prompts}, after {after}{earlier}"
            panel.set_title(title, fontsize=9, loc="left")
        axes[-1].set_xlabel("decoder layer", fontsize=8.5)
        add_legend(axes[0])
    return figure


def _plot_shift_vs_forgetting(
    results: Results, settings: Sequence[ExperimentSetting], keys: Sequence[PromptsAndMode]
) -> Figure | None:
    """Shift of the token mass and KL since the base against the held-out change; a point per job and stage."""
    trained_tasks = {
        stage["task"] for setting in settings for row in setting.rows for stage in results[row.job]["stages"]
    }
    chosen_key = sorted(keys, key=lambda key: (key[0] in trained_tasks, key[1] != "forced"))[0]
    quantities = ["mass", "kl"]
    points: dict[str, list[tuple[float, float, str, int, str]]] = {name: [] for name in quantities}
    labels = list(dict.fromkeys(setting.first_row.label for setting in settings))
    for setting in settings:
        for row in setting.rows:
            job = results[row.job]
            name = choose_plotted_token_set(job, chosen_key)
            readings = [
                each
                for each in iterate_shift_readings(job)
                if each.step is None and _has_prompts_and_mode(each.reading, chosen_key)
            ]
            for quantity in quantities:
                base = next(
                    (_get_quantity(each.reading, quantity, name) for each in readings if each.stage == 0),
                    None,
                )
                for timed_reading in readings:
                    value = _get_quantity(timed_reading.reading, quantity, name)
                    change = row.heldout_per_stage[timed_reading.stage - 1]["value"] if timed_reading.stage else None
                    if value is None or change is None or base is None:
                        continue
                    point_label = (
                        f"{row.label} after stage {timed_reading.stage} ({row.tasks[timed_reading.stage - 1]})"
                    )
                    points[quantity].append((value - base, change, point_label, labels.index(row.label), row.job))
    drawable = [quantity for quantity in quantities if len(points[quantity]) > 1]
    if not drawable:
        return None
    with matplotlib.rc_context(PLOT_STYLE):
        figure, axes = _create_panels(len(drawable), 2.9)
        for quantity, panel in zip(drawable, axes, strict=True):
            labelled_places: set[int] = set()
            for x, y, point_label, place, _ in points[quantity]:
                colour, marker = choose_colour_and_marker(place)
                label = None if place in labelled_places else labels[place]
                labelled_places.add(place)
                panel.plot([x], [y], color=colour, marker=marker, markersize=5, linestyle="none", label=label)
                add_tooltip(panel, x, y, f"{point_label}: shift {x:+.3g}, held-out {y:+.1f}")
            name = next(
                (n for s in settings for r in s.rows if (n := choose_plotted_token_set(results[r.job], chosen_key))),
                "",
            )
            quantity_label = (
                f"shift of the share of {format_token_set_name(name)} tokens"
                if quantity == "mass"
                else "KL from the base (nats)"
            )
            panel.set_xlabel(f"{quantity_label}, {format_prompts_label(*chosen_key)}", fontsize=9)
            panel.set_ylabel("held-out change (points)", fontsize=9)
            panel.set_title(_format_correlation_title(points[quantity]), fontsize=9, loc="left")
        add_legend(axes[0])
    return figure


def _format_correlation_title(points: Sequence[tuple[float, float, str, int, str]]) -> str:
    x, y, _, _, jobs = zip(*points, strict=True)
    correlations = compute_correlations(x, y, jobs)
    rank = correlations["spearman"]
    if rank["value"] is None:
        return f"{len(points)} stages"
    interval_text = "" if rank["low"] is None else f" [{rank['low']:+.2f}, {rank['high']:+.2f}]"
    return f"{len(points)} stages, rank correlation {rank['value']:+.2f}{interval_text}"


def format_prompts_label(prompts: str, mode: str) -> str:
    """`tiny_captions`, `free` -> `captions, own answers`."""
    return f"{prompts.removeprefix(TINY_PREFIX)}, {MODE_LABELS.get(mode, mode)}"


def _create_panels(num_panels: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.4, height * num_panels + 0.6), layout="constrained")
    axes = list(figure.subplots(num_panels, 1, squeeze=False)[:, 0])
    for panel in axes:
        panel.grid(axis="y", color=TEXT_COLOUR, alpha=0.18, linewidth=0.6)
        panel.tick_params(labelsize=8)
    return figure, axes


def _has_prompts_and_mode(reading: Mapping[str, Any], key: PromptsAndMode) -> bool:
    return (reading["prompts"], reading["mode"]) == key


def _get_quantity(reading: Mapping[str, Any], quantity: str, token_set: str | None) -> float | None:
    mass = (reading.get("mass") or {}).get(token_set or "") or {}
    value = reading.get("kl") if quantity == "kl" else mass.get("mean")
    return None if value is None else float(value)


def format_token_set_name(name: str) -> str:
    """The name of a token set for a legend, without prefixes."""
    return name.removeprefix(LEARNED_SET_PREFIX).removeprefix(TINY_PREFIX).replace("_", "/")
