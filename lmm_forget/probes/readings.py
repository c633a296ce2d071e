"""From figures of single positions to what a record holds: rows per sample, and aggregates with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lmm_forget.metrics.bootstrap import cluster_weights, tidy

LEVEL, RESAMPLES = 0.95, 2000
LEAST_REACHED = 0.05
"""Positions that a smaller share of the samples reaches are left out of `by_position`."""
Floats = NDArray[np.float64]


@dataclass
class Positions:
    """Figures of every position of every sample, for one model, one set of prompts and one mode.

    `texts[i]` is what sample i said or was made to say, `figures[name][i]` holds one value per position.
    """

    mode: str
    sample_ids: list[str]
    image_ids: list[str]
    texts: list[str]
    figures: dict[str, list[Floats]] = field(default_factory=dict)

    @classmethod
    def empty(cls, mode: str, sample_ids: list[str], image_ids: list[str]) -> Positions:
        """For samples whose figures are still to come, in any order."""
        return cls(mode, sample_ids, image_ids, [""] * len(sample_ids))

    def put(self, index: int, text: str, figures: Mapping[str, Floats]) -> None:
        """The figures of sample number `index`."""
        self.texts[index] = text
        for name, values in figures.items():
            nothing = [np.empty(0) for _ in self.sample_ids]
            self.figures.setdefault(name, nothing)[index] = np.asarray(values, dtype=np.float64)

    def sample_means(self, name: str) -> Floats:
        """[samples]: mean over each sample's positions."""
        return np.array([values.mean() for values in self.figures[name]])


def shift_reading(positions: Positions, prompts: str, sets: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The aggregates of one output-shift look; schema in docs/probes.md."""
    reached = np.array([len(values) for values in positions.figures["entropy"]])
    clusters = positions.image_ids
    means = {name: positions.sample_means(name) for name in positions.figures if name != "top"}
    reading: dict[str, Any] = {
        "probe": "output_shift",
        "prompts": prompts,
        "mode": positions.mode,
        "n": len(reached),
        "positions": int(reached.sum()),
        "mass": {
            name: {
                **interval(means[f"mass:{name}"], clusters),
                "max": tidy(float(np.mean([values.max() for values in positions.figures[f"mass:{name}"]]))),
            }
            for name in sets
        },
    }
    if positions.mode == "free":
        said = [set(values.astype(int).tolist()) for values in positions.figures["top"]]
        reading["said"] = {
            name: tidy(float(np.mean([bool(tokens & set(ids)) for tokens in said])))
            for name, ids in sets.items()
        }
    for name in ("entropy", "nll", "kl", "js", "agreement"):
        reading[name] = tidy(float(means[name].mean())) if name in means else None
    reading["by_position"] = _by_position(positions, sets, reached)
    return reading


def interval(values: Floats, clusters: Sequence[str], *, seed: int = 0) -> dict[str, float | None]:
    """{mean, low, high} of sample values [n]: percentile interval over resampled images (`clusters` [n])."""
    names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    mean = tidy(float(values.mean()))
    if len(names) < 2:
        return {"mean": mean, "low": None, "high": None}
    sums = np.bincount(cluster, weights=values)
    counts = np.bincount(cluster).astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([(w @ sums) / (w @ counts) for w in cluster_weights(rng, RESAMPLES, len(names))])
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": mean, "low": tidy(low), "high": tidy(high)}


def _by_position(positions: Positions, sets: Mapping[str, Any], reached: NDArray[Any]) -> dict[str, Any]:
    counts = [int((reached > k).sum()) for k in range(int(reached.max()))]
    counts = [n for n in counts if n >= LEAST_REACHED * len(reached)]

    def along(name: str) -> list[float] | None:
        if name not in positions.figures:
            return None
        rows = positions.figures[name]
        return [tidy(np.mean([row[k] for row in rows if len(row) > k])) for k in range(len(counts))]

    return {
        "n": counts,
        "mass": {name: along(f"mass:{name}") for name in sets},
        "entropy": along("entropy"),
        "kl": along("kl"),
    }


def sample_table(positions: Positions, prompts: str, sets: Sequence[str]) -> pa.Table:
    """One row per sample: what was said, and its means (and the sets' largest mass) over positions."""
    n = len(positions.sample_ids)
    columns: dict[str, Any] = {
        "prompts": [prompts] * n,
        "mode": [positions.mode] * n,
        "sample_id": positions.sample_ids,
        "image_id": positions.image_ids,
        "text": positions.texts,
        "positions": pa.array([len(values) for values in positions.figures["entropy"]], pa.int32()),
    }
    for name in sets:
        columns[f"mass_mean:{name}"] = positions.sample_means(f"mass:{name}")
        columns[f"mass_max:{name}"] = [values.max() for values in positions.figures[f"mass:{name}"]]
    for name in ("entropy", "nll", "kl", "js", "agreement"):
        known = name in positions.figures
        values = positions.sample_means(name) if known else [None] * n
        columns[name] = pa.array(values, pa.float64())
    return pa.table(columns)


def flat(entry: Mapping[str, Any] | None) -> dict[str, float]:
    """The figures of a `probes` entry that curves are drawn of, as `probe/<prompts>/<mode>/number_mass` and so on."""
    named: dict[str, float | None] = {}
    for reading in (entry or {}).get("readings", ()):
        if reading["probe"] == "output_shift":
            prefix = f"probe/{reading['prompts']}/{reading['mode']}"
            named |= {f"{prefix}/{name}_mass": mass["mean"] for name, mass in reading["mass"].items()}
            named |= {
                f"{prefix}/{name}": reading[name] for name in ("entropy", "nll", "kl", "js", "agreement")
            }
        else:
            prefix = f"probe/{reading['prompts']}/norm"
            named |= {
                f"{prefix}/{kind}": float(np.mean(reading["norm"][kind])) for kind in ("attention", "mlp")
            }
    return {name: value for name, value in named.items() if value is not None}
