"""A job's own pictures of what its probes saw, drawn from its results alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def probe_pictures(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write shift_per_stage and layers_per_stage, each .svg and .png, as far as there are readings for them."""
    import matplotlib

    drawn = {"shift_per_stage": shift_per_stage(results), "layers_per_stage": layers_per_stage(results)}
    paths = []
    for name, figure in drawn.items():
        if figure is not None:
            for kind, unstable in (("svg", "Date"), ("png", "Software")):
                paths.append(folder / f"{name}.{kind}")
                with matplotlib.rc_context({"svg.hashsalt": "lmm-forget"}):  # equal results give equal files
                    figure.savefig(paths[-1], dpi=160, metadata={unstable: None})
    return paths


def shift_per_stage(results: Mapping[str, Any]) -> Figure | None:
    """Mass of each token set on each set of prompts at the base, at milestones and after each stage."""
    looks = _looks(results)
    kinds = dict.fromkeys(
        (reading["prompts"], reading["mode"])
        for _, _, readings in looks
        for reading in readings
        if reading["probe"] == "output_shift"
    )
    if not kinds:
        return None
    figure, axes = _panels(len(kinds))
    for axis, (prompts, mode) in zip(axes, kinds, strict=True):
        found = [
            (x, reading)
            for x, _, readings in looks
            for reading in readings
            if (reading["probe"], reading["prompts"], reading.get("mode")) == ("output_shift", prompts, mode)
        ]
        for name in found[0][1]["mass"]:
            axis.plot(
                [x for x, _ in found],
                [reading["mass"][name]["mean"] for _, reading in found],
                marker=".",
                label=name,
            )
        axis.set_title(f"{prompts}, {mode}")
        axis.set_ylabel("probability of the set")
        _stage_axis(axis, results)
    axes[0].legend(fontsize=6, frameon=False)
    return figure


def layers_per_stage(results: Mapping[str, Any]) -> Figure | None:
    """Norm of the change in logits that each layer's attention and MLP write, a panel per stage."""
    found = [
        (f"{index}: {label}", reading)
        for index, (_, label, readings) in enumerate(
            [look for look in _looks(results) if look[1] and float(look[0]).is_integer()], start=1
        )
        for reading in readings
        if reading["probe"] == "residual_to_logit"
    ]
    if not found:
        return None
    figure, axes = _panels(len(found))
    for axis, (label, reading) in zip(axes, found, strict=True):
        layers = range(1, len(reading["folded"]["mlp"]) + 1)
        for kind, color in (("attention", "tab:blue"), ("mlp", "tab:orange")):
            axis.plot(layers, reading["folded"][kind], marker="o", color=color, label=kind)
        axis.set_title(f"after {label}", fontsize=8)
        axis.set_xlabel("layer")
        axis.set_ylabel("change in logits (norm)")
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def _looks(results: Mapping[str, Any]) -> list[tuple[float, str, list[dict[str, Any]]]]:
    """(place on the stage axis, task taught, readings) of every look; a milestone lies on the way to its stage."""
    looks = [(0.0, "", results["base"]["probes"]["readings"])]
    for stage in results["stages"]:
        probes = stage.get("probes")
        if probes is None:
            continue
        for milestone in probes["milestones"]:
            place = stage["index"] - 1 + milestone["step"] / stage["steps"]
            if milestone["step"] < stage["steps"]:
                looks.append((place, stage["task"], milestone["readings"]))
        looks.append((float(stage["index"]), stage["task"], probes["readings"]))
    return looks


def _panels(n: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * n, 2.8), layout="constrained")
    return figure, [figure.add_subplot(1, n, k + 1) for k in range(n)]


def _stage_axis(axis: Axes, results: Mapping[str, Any]) -> None:
    names = ["base", *(stage["task"].removeprefix("tiny_") for stage in results["stages"])]
    axis.set_xticks(range(len(names)), names, rotation=45, fontsize=7)
