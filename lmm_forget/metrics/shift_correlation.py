"""Correlate forgetting with the shift of the output distribution, over the jobs of a sweep.

A point is a model: a job's model after a stage, or at a milestone with held-out scores. Points of one job are not
independent, so intervals resample whole jobs (a cluster bootstrap; Cameron, Gelbach and Miller, 2008).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmm_forget.metrics.bootstrap import round_float

Floats = NDArray[np.float64]
NUM_RESAMPLES, CONFIDENCE_LEVEL = 2000, 0.95
MIN_RUNS, MIN_POINTS = 3, 3
"""The smallest numbers of jobs for an interval and of points for a correlation."""


def correlate_shift_with_forgetting(
    results: Sequence[Mapping[str, Any]], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Correlate the shift on each set of prompts with held-out forgetting, over the jobs that have probes.

    `results` are contents of results.json whose `job.job` names the job. Returns

    - jobs: the number of jobs with probes
    - shifts: one entry per set of prompts and mode, with the keys `figures` (shift figure -> its correlations with the
      change of the held-out mean, "heldout" in points, and with the rise of the references' nll, "nll"), `recovery`
      (see `_test_recovery`) and `base` (the base's values)
    - layers: the shares of the blocks in the change of the logits (see `_compute_layer_shares`)
    - points: the data
    """
    with_probes = [result for result in results if "probes" in result]
    points = [point for result in with_probes for point in _collect_points(result)]
    keys = dict.fromkeys(key for point in points for key in point["shift"])
    shifts = [
        {
            **_correlate_one_shift(points, key, num_resamples, seed),
            "base": _extract_base_values(with_probes[0], key),
        }
        for key in keys
    ]
    return {
        "jobs": len(with_probes),
        "shifts": shifts,
        "layers": [entry for result in with_probes for entry in _compute_layer_shares(result)],
        "points": [
            {
                **point,
                "shift": {f"{prompts}/{mode}": values for (prompts, mode), values in point["shift"].items()},
            }
            for point in points
        ],
    }


def compute_correlations(
    x: Sequence[float],
    y: Sequence[float],
    runs: Sequence[str],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Pearson's r and Spearman's rho of two series, each {value, low, high}; `runs` has the job of each point.

    The 95 % percentile interval resamples jobs and ignores draws without variance. low and high are None with fewer
    than 3 jobs; value is None too with fewer than 3 points or without variance.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    names, run = np.unique(np.asarray(runs), return_inverse=True)
    entry: dict[str, Any] = {"n": len(a), "runs": len(names)}
    members = [np.flatnonzero(run == k) for k in range(len(names))]
    rng = np.random.default_rng(seed)
    drawn_runs = rng.integers(0, max(len(names), 1), size=(num_resamples, len(names)))
    for name, correlation in (("pearson", _compute_pearson), ("spearman", _compute_spearman)):
        value = correlation(a, b) if len(a) >= MIN_POINTS else None
        low = high = None
        if value is not None and len(names) >= MIN_RUNS:
            resampled = _resample_correlation(correlation, a, b, members, drawn_runs)
            low, high = (
                round_float(q) for q in np.quantile(resampled, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
            )
        entry[name] = {"value": None if value is None else round_float(value), "low": low, "high": high}
    return entry


def _resample_correlation(
    correlation: Callable[[Floats, Floats], float | None],
    a: Floats,
    b: Floats,
    run_indices: Sequence[NDArray[np.intp]],
    drawn_runs: NDArray[np.int64],
) -> list[float]:
    """The correlation in every draw of jobs, all at once if jobs have equally many points (30 times faster)."""
    if len({len(indices) for indices in run_indices}) > 1:
        correlations = [
            correlation(a[i], b[i]) for i in (np.concatenate([run_indices[k] for k in draw]) for draw in drawn_runs)
        ]
        return [r for r in correlations if r is not None]
    point_indices = np.stack(run_indices)[drawn_runs].reshape(len(drawn_runs), -1)
    x, y = a[point_indices], b[point_indices]
    if correlation is _compute_spearman:
        from scipy import stats  # a second to import, needed only here

        x, y = stats.rankdata(x, axis=1), stats.rankdata(y, axis=1)
    varies = (np.ptp(x, axis=1) > 0) & (np.ptp(y, axis=1) > 0)
    x, y = (v[varies] - v[varies].mean(axis=1, keepdims=True) for v in (x, y))
    r = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return [float(value) for value in r]


def _compute_pearson(a: Floats, b: Floats) -> float | None:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _compute_spearman(a: Floats, b: Floats) -> float | None:
    from scipy import stats  # a second to import, needed only here

    return _compute_pearson(stats.rankdata(a), stats.rankdata(b))


def _collect_points(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One point per probed model of a job, without the base, whose shift is zero by definition."""
    base, suite = result["base"], result["config"]["suite"]["tasks"]
    base_readings = _index_readings_by_prompts(base["probes"]["readings"])
    label = {"job": result["job"].get("job"), "recipe": result["config"]["recipe"]["name"]}
    label["seed"] = result["config"].get("seed")
    points = []
    for stage in result["stages"]:
        probes = stage.get("probes")
        if probes is None:
            continue
        measurements = [(m["step"], m["readings"], m.get("scores")) for m in probes["milestones"]]
        measurements.append((None, probes["readings"], stage["scores"]))
        for step, readings, scores in measurements:
            heldout = None
            if scores is not None:
                heldout = float(np.mean([scores[t]["value"] - base["scores"][t]["value"] for t in suite]))
            shift = {
                key: _compute_shift(reading, base_readings[key])
                for key, reading in _index_readings_by_prompts(readings).items()
                if key in base_readings
            }
            location = {"stage": stage["index"], "step": step, "task": stage["task"]}
            points.append({**label, **location, "heldout": heldout, "shift": shift})
    return points


def _index_readings_by_prompts(
    readings: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(r["prompts"], r["mode"]): r for r in readings if r["probe"] == "output_shift"}


def _compute_shift(reading: Mapping[str, Any], base_reading: Mapping[str, Any]) -> dict[str, float]:
    """Shift figures of a reading: differences from the base for masses, entropy and nll; divergences unchanged."""
    shift = {
        f"{name}_mass": mass["mean"] - base_reading["mass"][name]["mean"]
        for name, mass in reading["mass"].items()
        if name in base_reading["mass"]
    }
    for name in ("entropy", "nll"):
        if reading[name] is not None and base_reading[name] is not None:
            shift[name] = reading[name] - base_reading[name]
    shift |= {name: reading[name] for name in ("kl", "js") if reading[name] is not None}
    return shift


def _correlate_one_shift(
    points: Sequence[Mapping[str, Any]], key: tuple[str, str], num_resamples: int, seed: int
) -> dict[str, Any]:
    matching_points = [point for point in points if key in point["shift"]]
    figures: dict[str, Any] = {}
    for name in dict.fromkeys(name for point in matching_points for name in point["shift"][key]):
        figures[name] = {}
        for against in ("heldout", "nll"):
            if against == name:
                continue
            pairs = [
                (
                    p["shift"][key][name],
                    p["heldout"] if against == "heldout" else p["shift"][key].get("nll"),
                    p["job"],
                )
                for p in matching_points
                if name in p["shift"][key]
            ]
            pairs = [pair for pair in pairs if pair[1] is not None]
            if pairs:
                x, y, runs = zip(*pairs, strict=True)
                figures[name][against] = compute_correlations(
                    x, y, [str(r) for r in runs], num_resamples=num_resamples, seed=seed
                )
    names = [name for name in figures if name not in ("entropy",)]
    return {
        "prompts": key[0],
        "mode": key[1],
        "figures": figures,
        "recovery": {name: _test_recovery(matching_points, key, name, num_resamples, seed) for name in names},
    }


def _extract_base_values(result: Mapping[str, Any], key: tuple[str, str]) -> dict[str, float]:
    """The base's masses (fractions), entropy and nll (nats) on one set of prompts."""
    reading = _index_readings_by_prompts(result["base"]["probes"]["readings"]).get(key)
    if reading is None:
        return {}
    values = {f"{name}_mass": float(mass["mean"]) for name, mass in reading["mass"].items()}
    return values | {name: float(reading[name]) for name in ("entropy", "nll") if reading[name] is not None}


def _test_recovery(
    points: Sequence[Mapping[str, Any]], key: tuple[str, str], name: str, num_resamples: int, seed: int
) -> dict[str, Any]:
    """Test whether the shift goes back towards the base where the held-out mean rises from one stage to the next.

    The distance from the base is the absolute value of the shift. The step from the base to the first stage is left
    out, because there the distance can only grow. Returns

    - recovered: the number of stages after which the held-out mean rose; rises: these stages
    - shift_went_back: how many of them have a smaller distance than the stage before
    - p: the two-sided sign test of these counts, which treats stages as independent (those of one job are not)
    - fell, shift_grew: the number of stages after which the mean fell, and how many of them have a larger distance
    - changes: the correlation of the change of the distance with that of the held-out mean (negative if they go
      together)
    """
    steps: list[dict[str, Any]] = []
    stages = [p for p in points if p["step"] is None and name in p["shift"][key] and p["heldout"] is not None]
    for before, after in zip(stages, stages[1:], strict=False):
        if before["job"] == after["job"]:
            distance_before, distance_after = (abs(p["shift"][key][name]) for p in (before, after))
            change = {
                "heldout": round_float(after["heldout"] - before["heldout"]),
                "distance": round_float(distance_after - distance_before),
            }
            steps.append({**{k: after[k] for k in ("job", "recipe", "stage", "task")}, **change})
    from scipy import stats  # a second to import, needed only here

    rises = [step for step in steps if step["heldout"] > 0]
    falls = [step for step in steps if step["heldout"] < 0]
    num_shrunk = sum(step["distance"] < 0 for step in rises)
    num_grown = sum(step["distance"] > 0 for step in falls)
    return {
        "recovered": len(rises),
        "shift_went_back": num_shrunk,
        "p": float(stats.binomtest(num_shrunk, len(rises)).pvalue) if rises else None,
        "fell": len(falls),
        "shift_grew": num_grown,
        "rises": rises,
        "changes": compute_correlations(
            [step["distance"] for step in steps],
            [step["heldout"] for step in steps],
            [str(step["job"]) for step in steps],
            num_resamples=num_resamples,
            seed=seed,
        ),
    }


def _compute_layer_shares(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Shares of attention and MLP in both halves of the decoder in the change of the logits, per stage.

    "norm" and "folded" are shares of norms; "direct" is signed.
    """
    layer_shares = []
    for stage in result["stages"]:
        for reading in stage.get("probes", {}).get("readings", ()):
            if reading["probe"] != "residual_to_logit":
                continue
            entry = {"job": result["job"].get("job"), "recipe": result["config"]["recipe"]["name"]}
            entry |= {"stage": stage["index"], "task": stage["task"], "prompts": reading["prompts"]}
            half = len(reading["folded"]["mlp"]) // 2
            for variant in ("norm", "folded", "direct"):
                values = {block: reading[variant][block] for block in ("attention", "mlp")}
                if values["mlp"][0] is None:
                    continue
                total = 1.0 if variant == "direct" else sum(sum(v) for v in values.values())
                parts = {
                    f"{part}_{block}": round_float(sum(v[:half] if part == "early" else v[half:]) / total)
                    if total
                    else None
                    for block, v in values.items()
                    for part in ("early", "late")
                }
                entry[variant] = parts
            layer_shares.append(entry)
    return layer_shares
