"""From metrics of single token positions to records: one row per sample, and aggregates with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lmm_forget.metrics.bootstrap import draw_cluster_weights, round_float

CONFIDENCE_LEVEL, NUM_RESAMPLES = 0.95, 2000
MIN_POSITION_SHARE = 0.05
"""Positions that a smaller share of the samples reaches are left out of the means by position."""
FloatArray = NDArray[np.float64]


@dataclass
class PositionMetrics:
    """Metrics at every answer position of every sample, for one model, one set of prompts and one mode.

    `mode` is "free" or "forced". `texts[i]` is the answer that the model generated (free) or was given (forced) for
    sample i; `metrics[name][i]` holds one value per position of that answer.
    """

    mode: str
    sample_ids: list[str]
    image_ids: list[str]
    texts: list[str]
    metrics: dict[str, list[FloatArray]] = field(default_factory=dict)

    @classmethod
    def create_empty(cls, mode: str, sample_ids: list[str], image_ids: list[str]) -> PositionMetrics:
        """Without metrics yet; `set_sample` adds them, in any order of the samples."""
        return cls(mode, sample_ids, image_ids, [""] * len(sample_ids))

    def set_sample(self, index: int, text: str, metrics: Mapping[str, FloatArray]) -> None:
        """Set the answer and the metrics (one value per position) of sample number `index`."""
        self.texts[index] = text
        for name, values in metrics.items():
            empty = [np.empty(0) for _ in self.sample_ids]
            self.metrics.setdefault(name, empty)[index] = np.asarray(values, dtype=np.float64)

    def compute_sample_means(self, metric: str) -> FloatArray:
        """Mean over each sample's positions, [samples]."""
        return np.array([values.mean() for values in self.metrics[metric]])


def summarize_output_shift(
    position_metrics: PositionMetrics, prompt_set_name: str, token_sets: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """The reading of the output-shift probe: aggregates over positions and samples (schema in docs/probes.md)."""
    num_positions = np.array([len(values) for values in position_metrics.metrics["entropy"]])
    clusters = position_metrics.image_ids
    means = {name: position_metrics.compute_sample_means(name) for name in position_metrics.metrics if name != "top"}
    reading: dict[str, Any] = {
        "probe": "output_shift",
        "prompts": prompt_set_name,
        "mode": position_metrics.mode,
        "n": len(num_positions),
        "positions": int(num_positions.sum()),
        "mass": {
            name: {
                **bootstrap_mean_interval(means[f"mass:{name}"], clusters),
                "max": round_float(
                    float(np.mean([values.max() for values in position_metrics.metrics[f"mass:{name}"]]))
                ),
            }
            for name in token_sets
        },
    }
    if position_metrics.mode == "free":
        predicted_tokens = [set(values.astype(int).tolist()) for values in position_metrics.metrics["top"]]
        reading["predicted_share"] = {
            name: round_float(float(np.mean([bool(tokens & set(ids)) for tokens in predicted_tokens])))
            for name, ids in token_sets.items()
        }
    for name in ("entropy", "nll", "kl", "js", "agreement"):
        reading[name] = round_float(float(means[name].mean())) if name in means else None
    reading["by_position"] = _average_by_position(position_metrics, token_sets, num_positions)
    return reading


def bootstrap_mean_interval(values: FloatArray, clusters: Sequence[str], *, seed: int = 0) -> dict[str, float | None]:
    """{mean, low, high} of sample values [n]; percentile bootstrap interval, resampling images (`clusters` [n])."""
    names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    mean = round_float(float(values.mean()))
    if len(names) < 2:
        return {"mean": mean, "low": None, "high": None}
    sums = np.bincount(cluster, weights=values)
    counts = np.bincount(cluster).astype(np.float64)
    rng = np.random.default_rng(seed)
    resampled_means = np.concatenate(
        [(w @ sums) / (w @ counts) for w in draw_cluster_weights(rng, NUM_RESAMPLES, len(names))]
    )
    low, high = np.quantile(resampled_means, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return {"mean": mean, "low": round_float(low), "high": round_float(high)}


def _average_by_position(
    position_metrics: PositionMetrics, token_sets: Mapping[str, Any], num_positions: NDArray[Any]
) -> dict[str, Any]:
    counts = [int((num_positions > k).sum()) for k in range(int(num_positions.max()))]
    counts = [n for n in counts if n >= MIN_POSITION_SHARE * len(num_positions)]

    def average_metric(name: str) -> list[float] | None:
        if name not in position_metrics.metrics:
            return None
        rows = position_metrics.metrics[name]
        return [round_float(np.mean([row[k] for row in rows if len(row) > k])) for k in range(len(counts))]

    return {
        "n": counts,
        "mass": {name: average_metric(f"mass:{name}") for name in token_sets},
        "entropy": average_metric("entropy"),
        "kl": average_metric("kl"),
    }


def make_sample_table(
    position_metrics: PositionMetrics, prompt_set_name: str, token_set_names: Sequence[str]
) -> pa.Table:
    """One row per sample: its answer, and the means (of masses the maxima too) of its metrics over positions."""
    n = len(position_metrics.sample_ids)
    columns: dict[str, Any] = {
        "prompts": [prompt_set_name] * n,
        "mode": [position_metrics.mode] * n,
        "sample_id": position_metrics.sample_ids,
        "image_id": position_metrics.image_ids,
        "text": position_metrics.texts,
        "positions": pa.array([len(values) for values in position_metrics.metrics["entropy"]], pa.int32()),
    }
    for name in token_set_names:
        columns[f"mass_mean:{name}"] = position_metrics.compute_sample_means(f"mass:{name}")
        columns[f"mass_max:{name}"] = [values.max() for values in position_metrics.metrics[f"mass:{name}"]]
    for name in ("entropy", "nll", "kl", "js", "agreement"):
        has_metric = name in position_metrics.metrics
        values = position_metrics.compute_sample_means(name) if has_metric else [None] * n
        columns[name] = pa.array(values, pa.float64())
    return pa.table(columns)
