"""Probe readings as curves: one number per name and stage, or per name and milestone step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from lmm_forget.tracking.names import probe, score

LAYER_COLUMNS = ("stage", "prompts", "block", "layer", "norm", "shared", "folded", "direct")
_SHIFTS = ("entropy", "nll", "kl", "js", "agreement")


def stage_curves(entry: Mapping[str, Any] | None) -> dict[str, float]:
    """Figures of a stage's `probes` entry (see docs/probes.md) by name; empty without one.

    Masses (0..1) and shifts (nats) are means over positions and samples, norms (logits) means over layers;
    `probe/alarm/step` is there where the drift alarm went off. What a reading lacks, or holds as null, is left out.
    """
    curves: dict[str, float] = {}
    if (entry or {}).get("alarm"):
        curves[probe("alarm", "step")] = (entry or {})["alarm"].get("step")
    for reading in (entry or {}).get("readings") or []:
        prompts = str(reading.get("prompts"))
        if reading.get("probe") == "output_shift":
            mode = str(reading.get("mode"))
            for name, mass in (reading.get("mass") or {}).items():
                curves[probe(prompts, mode, f"{name}_mass")] = mass.get("mean")
            curves |= {probe(prompts, mode, name): reading.get(name) for name in _SHIFTS}
        elif reading.get("probe") == "residual_to_logit":
            for block, norms in (reading.get("norm") or {}).items():
                if norms:
                    curves[probe(prompts, "norm", block)] = fmean(norms)
    return {name: float(value) for name, value in curves.items() if value is not None}


def milestones(entry: Mapping[str, Any] | None) -> list[tuple[int, dict[str, float]]]:
    """(step of the stage, figures) of every milestone inside a stage, ascending; with scores where it was asked."""
    told = []
    for each in (entry or {}).get("milestones") or []:
        asked = {score(task): float(found["value"]) for task, found in (each.get("scores") or {}).items()}
        told.append((int(each["step"]), {**stage_curves(each), **asked}))
    return told


def layer_rows(index: int, entry: Mapping[str, Any] | None) -> list[list[Any]]:
    """One row per layer and block (columns `LAYER_COLUMNS`) of the residual readings after stage `index`."""
    return [row for reading in (entry or {}).get("readings") or [] for row in _layers(index, reading)]


def _layers(index: int, reading: Mapping[str, Any]) -> Iterator[list[Any]]:
    if reading.get("probe") != "residual_to_logit":
        return
    for block, norms in (reading.get("norm") or {}).items():
        for layer, norm in enumerate(norms):
            others = (_at(reading, kind, block, layer) for kind in ("shared", "folded", "direct"))
            yield [index, reading.get("prompts"), block, layer, norm, *others]


def _at(reading: Mapping[str, Any], kind: str, block: str, layer: int) -> float | None:
    values: Sequence[float] | None = (reading.get(kind) or {}).get(block)
    return values[layer] if values and layer < len(values) else None
