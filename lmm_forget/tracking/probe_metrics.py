"""Probe readings as metrics for curves: one number per name and stage, or per name and milestone step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from lmm_forget.tracking.metric_names import format_probe_metric_name, format_score_metric_name

LAYER_COLUMNS = ("stage", "prompts", "block", "layer", "norm", "shared", "folded", "direct")
_SHIFT_METRICS = ("entropy", "nll", "kl", "js", "agreement")


def flatten_probe_readings(probe_entry: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics of a stage's `probes` entry (docs/probes.md) by name; empty if `probe_entry` is None.

    Masses (0..1) and shifts (nats) are means over positions and samples, norms (logits) means over layers.
    `probe/alarm/step` exists if the drift alarm went off. What a reading lacks, or holds as null, is left out.
    """
    metrics: dict[str, float] = {}
    if (probe_entry or {}).get("alarm"):
        metrics[format_probe_metric_name("alarm", "step")] = (probe_entry or {})["alarm"].get("step")
    for reading in (probe_entry or {}).get("readings") or []:
        prompts = str(reading.get("prompts"))
        if reading.get("probe") == "output_shift":
            mode = str(reading.get("mode"))
            for name, mass in (reading.get("mass") or {}).items():
                metrics[format_probe_metric_name(prompts, mode, f"{name}_mass")] = mass.get("mean")
            metrics |= {format_probe_metric_name(prompts, mode, name): reading.get(name) for name in _SHIFT_METRICS}
        elif reading.get("probe") == "residual_to_logit":
            for block, norms in (reading.get("norm") or {}).items():
                if norms:
                    metrics[format_probe_metric_name(prompts, "norm", block)] = fmean(norms)
    return {name: float(value) for name, value in metrics.items() if value is not None}


def flatten_milestones(probe_entry: Mapping[str, Any] | None) -> list[tuple[int, dict[str, float]]]:
    """(step of the stage, metrics) of every milestone in a stage, ascending; with scores if it was evaluated."""
    milestone_metrics = []
    for milestone in (probe_entry or {}).get("milestones") or []:
        scores = {
            format_score_metric_name(task): float(score["value"])
            for task, score in (milestone.get("scores") or {}).items()
        }
        milestone_metrics.append((int(milestone["step"]), {**flatten_probe_readings(milestone), **scores}))
    return milestone_metrics


def build_layer_rows(stage: int, probe_entry: Mapping[str, Any] | None) -> list[list[Any]]:
    """One row per layer and block (columns `LAYER_COLUMNS`) of the residual readings after stage `index`."""
    return [row for reading in (probe_entry or {}).get("readings") or [] for row in _iterate_layer_rows(stage, reading)]


def _iterate_layer_rows(stage: int, reading: Mapping[str, Any]) -> Iterator[list[Any]]:
    if reading.get("probe") != "residual_to_logit":
        return
    for block, norms in (reading.get("norm") or {}).items():
        for layer, norm in enumerate(norms):
            others = (_get_layer_value(reading, kind, block, layer) for kind in ("shared", "folded", "direct"))
            yield [stage, reading.get("prompts"), block, layer, norm, *others]


def _get_layer_value(reading: Mapping[str, Any], kind: str, block: str, layer: int) -> float | None:
    values: Sequence[float] | None = (reading.get(kind) or {}).get(block)
    return values[layer] if values and layer < len(values) else None
