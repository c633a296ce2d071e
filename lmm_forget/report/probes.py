"""What the probes saw, as pictures: the shift over time, which layers made it, and whether it goes with forgetting.

Reads the `probes` entries of results.json (docs/results_schema.md); whatever a job did not record is left out.
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

from lmm_forget.metrics.connection import correlate
from lmm_forget.report.figures import INK, STYLE, legend, look, tip
from lmm_forget.report.rows import TINY
from lmm_forget.report.settings import Setting

Results = Mapping[str, Mapping[str, Any]]
Key = tuple[str, str]  # prompts, mode
PANELS = 6
PROGRESS = "skill just taught (between skills: steps within the stage, on a logarithmic scale)"
MODES = {"free": "own answers", "forced": "along given answers"}
_LAYERS = (
    ("folded", "logits, final norm folded in"),
    ("shared", "logits, the base's head"),
    ("norm", "logits"),
)


@dataclass(frozen=True)
class Look:
    """One reading with its time: `stage` 0 is the base, `when` its place on the axis (milestones between stages)."""

    stage: int
    step: int | None
    when: float
    reading: Mapping[str, Any]


def probe_figures(results: Results, settings: Sequence[Setting]) -> dict[str, Figure]:
    """`probe_shift`, `probe_layers` and `probe_vs_forgetting`, each only where a job recorded what it draws."""
    jobs = [results[row.job] for setting in settings for row in setting.rows]
    found: dict[str, Figure] = {}
    keys = list(
        dict.fromkeys(
            (each.reading["prompts"], each.reading["mode"]) for job in jobs for each in shift_looks(job)
        )
    )
    if keys:
        found["probe_shift"] = _shift(results, settings, keys)
        connected = _connection(results, settings, keys)
        if connected is not None:
            found["probe_vs_forgetting"] = connected
    if any(True for job in jobs for _ in looks_of(job, "residual_to_logit")):
        found["probe_layers"] = _layers(results, settings)
    return found


def shift_looks(job: Mapping[str, Any]) -> Iterator[Look]:
    """The output-shift readings of a job, in time."""
    yield from looks_of(job, "output_shift")


def tokenset_name(job: Mapping[str, Any], key: Key) -> str | None:
    """The set of tokens whose mass is drawn: numbers where they were watched, else the first."""
    for here in shift_looks(job):
        if (here.reading["prompts"], here.reading["mode"]) == key and here.reading.get("mass"):
            return "number" if "number" in here.reading["mass"] else next(iter(here.reading["mass"]))
    return None


def looks_of(job: Mapping[str, Any], probe: str) -> Iterator[Look]:
    """The readings of one probe in a job, in time."""
    for stage, entry in enumerate((job["base"], *job["stages"])):
        probes = entry.get("probes") or {}
        steps = max(entry.get("steps") or 1, 1)
        for milestone in probes.get("milestones") or []:
            # the first steps move most: milestones lie on a logarithmic scale between two stages
            share = math.log1p(milestone["step"]) / math.log1p(max(steps, milestone["step"]))
            for reading in milestone.get("readings") or []:
                if reading.get("probe") == probe and share < 1:
                    yield Look(stage, milestone["step"], stage - 1 + share, reading)
        for reading in probes.get("readings") or []:
            if reading.get("probe") == probe:
                yield Look(stage, None, float(stage), reading)


def _shift(results: Results, settings: Sequence[Setting], keys: Sequence[Key]) -> Figure:
    """Mass of a token set (and the divergence from the base) over stages and milestones, a line per setting."""
    panels: list[tuple[Key, str]] = []
    for key in keys:
        panels.append((key, "mass"))
        if any(
            each.reading.get("kl") is not None
            for setting in settings
            for row in setting.rows
            for each in shift_looks(results[row.job])
            if (each.reading["prompts"], each.reading["mode"]) == key
        ):
            panels.append((key, "kl"))
    panels = panels[:PANELS]
    labels = [setting.name for setting in settings]
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(len(panels), 2.3)
        for (key, quantity), panel in zip(panels, axes, strict=True):
            prompts, mode = key
            for place, setting in enumerate(settings):
                jobs = [results[row.job] for row in setting.rows]
                line = _line(jobs, key, quantity)
                if not line:
                    continue
                colour, marker = look(place)
                x, y = [when for when, _, _ in line], [value for _, value, _ in line]
                panel.plot(x, y, color=colour, linewidth=1.4, label=labels[place])
                for stage in (True, False):  # full: after a stage; small and hollow: within one
                    some = [(when, value) for when, value, _ in line if (when == int(when)) == stage]
                    panel.plot(
                        [when for when, _ in some],
                        [value for _, value in some],
                        color=colour,
                        marker=marker,
                        markersize=4.5 if stage else 3,
                        markerfacecolor=colour if stage else "none",
                        linestyle="none",
                    )
                for when, value, said in line:
                    tip(panel, when, value, f"{setting.name} - {said}: {value:.3g}")
            name = next(
                (n for s in settings for r in s.rows if (n := tokenset_name(results[r.job], key))), ""
            )
            what = f"share of {set_name(name)} tokens" if quantity == "mass" else "KL from the base (nats)"
            panel.set_title(f"{what}, {where(prompts, mode)}", fontsize=9, loc="left")
            stages = max(len(setting.stages) for setting in settings)
            same = len({setting.tasks for setting in settings}) == 1 and settings[0].tasks
            names = settings[0].stages if same else [f"stage {s}" for s in range(1, stages + 1)]
            panel.set_xticks(
                range(len(names) + 1), ["base", *(n.removeprefix(TINY) for n in names)], fontsize=8
            )
        axes[-1].set_xlabel(PROGRESS, fontsize=8.5)
        if len(settings) > 1:
            legend(axes[0])
    return figure


def _line(jobs: Sequence[Mapping[str, Any]], key: Key, quantity: str) -> list[tuple[float, float, str]]:
    """(when, mean over jobs, what the moment is called), in time."""
    found: dict[tuple[float, str], list[float]] = {}
    for job in jobs:
        name = tokenset_name(job, key)
        for here in shift_looks(job):
            value = _value(here.reading, quantity, name) if _is(here.reading, key) else None
            if value is not None:
                moment = "base" if here.stage == 0 else f"stage {here.stage}"
                moment += "" if here.step is None else f", step {here.step}"
                found.setdefault((here.when, moment), []).append(value)
    return [(when, mean(values), moment) for (when, moment), values in sorted(found.items())]


def _layers(results: Results, settings: Sequence[Setting]) -> Figure:
    """How far attention and MLP of each layer moved the logits, after the last stage (thin: after earlier ones)."""
    shown = [
        setting
        for setting in settings
        if any(
            each.stage and each.step is None
            for each in looks_of(results[setting.first.job], "residual_to_logit")
        )
    ][:PANELS]
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(len(shown), 2.1)
        for setting, panel in zip(shown, axes, strict=True):
            looks = [
                here
                for here in looks_of(results[setting.first.job], "residual_to_logit")
                if here.stage and here.step is None
            ]
            looks = [here for here in looks if here.reading["prompts"] == looks[-1].reading["prompts"]]
            part, unit = next((p for p in _LAYERS if looks[-1].reading.get(p[0])), _LAYERS[-1])
            for place, (side, label) in enumerate((("attention", "attention"), ("mlp", "MLP"))):
                colour, marker = look(place)
                for here in looks:
                    values = (here.reading.get(part) or {}).get(side)
                    if not values:
                        continue
                    last = here is looks[-1]
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
                        tip(panel, layer, value, f"{setting.name} - layer {layer}, {side}: {value:.3g}")
            panel.set_ylabel(f"norm of the change in\n{unit}", fontsize=8)
            after = setting.first.tasks[looks[-1].stage - 1].removeprefix(TINY)
            earlier = " (thin: after earlier stages)" if len(looks) > 1 else ""
            seed = (
                f" seed {results[setting.first.job]['config'].get('seed')}" if len(setting.rows) > 1 else ""
            )
            prompts = looks[-1].reading["prompts"].removeprefix(TINY)
            title = f"{setting.name}{seed}, {prompts}, after {after}{earlier}"
            panel.set_title(title, fontsize=9, loc="left")
        axes[-1].set_xlabel("decoder layer", fontsize=8.5)
        legend(axes[0])
    return figure


def _connection(results: Results, settings: Sequence[Setting], keys: Sequence[Key]) -> Figure | None:
    """Drift of the token mass since the base against the held-out change, a point per job and stage."""
    taught = {
        stage["task"] for setting in settings for row in setting.rows for stage in results[row.job]["stages"]
    }
    best = sorted(keys, key=lambda key: (key[0] in taught, key[1] != "forced"))[0]
    quantities = ["mass", "kl"]
    points: dict[str, list[tuple[float, float, str, int, str]]] = {name: [] for name in quantities}
    labels = list(dict.fromkeys(setting.first.label for setting in settings))
    for setting in settings:
        for row in setting.rows:
            job = results[row.job]
            name = tokenset_name(job, best)
            looks = [each for each in shift_looks(job) if each.step is None and _is(each.reading, best)]
            for quantity in quantities:
                base = next((_value(each.reading, quantity, name) for each in looks if each.stage == 0), None)
                for here in looks:
                    value = _value(here.reading, quantity, name)
                    change = row.heldout_per_stage[here.stage - 1]["value"] if here.stage else None
                    if value is None or change is None or base is None:
                        continue
                    said = f"{row.label} after stage {here.stage} ({row.tasks[here.stage - 1]})"
                    points[quantity].append((value - base, change, said, labels.index(row.label), row.job))
    drawn = [quantity for quantity in quantities if len(points[quantity]) > 1]
    if not drawn:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(len(drawn), 2.9)
        for quantity, panel in zip(drawn, axes, strict=True):
            seen: set[int] = set()
            for x, y, said, place, _ in points[quantity]:
                colour, marker = look(place)
                label = None if place in seen else labels[place]
                seen.add(place)
                panel.plot([x], [y], color=colour, marker=marker, markersize=5, linestyle="none", label=label)
                tip(panel, x, y, f"{said}: shift {x:+.3g}, held-out {y:+.1f}")
            name = next(
                (n for s in settings for r in s.rows if (n := tokenset_name(results[r.job], best))), ""
            )
            what = (
                f"shift of the share of {set_name(name)} tokens"
                if quantity == "mass"
                else "KL from the base (nats)"
            )
            panel.set_xlabel(f"{what}, {where(*best)}", fontsize=9)
            panel.set_ylabel("held-out change (points)", fontsize=9)
            panel.set_title(_correlation(points[quantity]), fontsize=9, loc="left")
        legend(axes[0])
    return figure


def _correlation(points: Sequence[tuple[float, float, str, int, str]]) -> str:
    x, y, _, _, jobs = zip(*points, strict=True)
    found = correlate(x, y, jobs)
    rank = found["spearman"]
    if rank["value"] is None:
        return f"{len(points)} stages"
    between = "" if rank["low"] is None else f" [{rank['low']:+.2f}, {rank['high']:+.2f}]"
    return f"{len(points)} stages, rank correlation {rank['value']:+.2f}{between}"


def where(prompts: str, mode: str) -> str:
    """`tiny_captions`, `free` -> `captions, own answers`."""
    return f"{prompts.removeprefix(TINY)}, {MODES.get(mode, mode)}"


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.4, height * count + 0.6), layout="constrained")
    axes = list(figure.subplots(count, 1, squeeze=False)[:, 0])
    for panel in axes:
        panel.grid(axis="y", color=INK, alpha=0.18, linewidth=0.6)
        panel.tick_params(labelsize=8)
    return figure, axes


def _is(reading: Mapping[str, Any], key: Key) -> bool:
    return (reading["prompts"], reading["mode"]) == key


def _value(reading: Mapping[str, Any], quantity: str, name: str | None) -> float | None:
    mass = (reading.get("mass") or {}).get(name or "") or {}
    found = reading.get("kl") if quantity == "kl" else mass.get("mean")
    return None if found is None else float(found)


def set_name(name: str) -> str:
    """The name of a token set as readers see it."""
    return name.removeprefix("taught:").removeprefix(TINY).replace("_", "/")
