"""The figures of merit: how much was learned, and what it cost.

With a[s, t] the score of task t after stage s, base[t] = a[0, t], T stages, and t_s the task of stage s:

    target learning      mean over stages s of a[s, t_s] - base[t_s]
    target forgetting    mean over tasks t last taught at a stage s_t < T of a[T, t] - a[s_t, t]
    target overall       mean over distinct targets t of a[T, t] - base[t]
    held-out forgetting  mean over the suite of a[s, b] - base[b], for each stage s; the figure is s = T
      worst              the smallest of these over the stages, the stage chosen anew in each resample
      recovery           final - worst (never negative, so its interval carries no significance)
      sum                sum instead of mean over the suite, at s = T

All in percentage points; negative is forgetting. Intervals are BCa intervals (see intervals.py) of a bootstrap over
images, one joint draw per task across all stages (see bootstrap.py); that of recovery, which is never negative and
often exactly zero, is the plain percentiles. They cover the choice of questions, not of training seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmm_forget.errors import DataError
from lmm_forget.metrics.bootstrap import (
    Draws,
    Floats,
    TaskScores,
    check_settings,
    task_draws,
)
from lmm_forget.metrics.intervals import estimate, undefined

Change = tuple[str, int, int]  # task, stage before, stage after


def figures(
    taught: Sequence[str],
    suite: Sequence[str],
    scores: Mapping[str, TaskScores],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """The `figures` of results.json.

    taught  task of stage 1..T, in order (a task may be taught again)
    suite   the held-out benchmarks (may be empty)
    scores  by task; values [T + 1, n]

    Returns target_learning, target_forgetting, target_overall and heldout_forgetting, each {value, low, high}
    in points; heldout_forgetting also per_stage (T of them), worst (with `stage`, counted from 1), recovery
    and sum. Where a figure does not exist (forgetting with nothing taught before the last stage; held-out
    without a suite) all three are None; where a task has only one image, low and high are None.

    Raises DataError if nothing was taught, a task's scores are missing or have another number of stages, or a
    target stands in the suite.
    """
    check_settings(resamples, level)
    _check(taught, suite, scores)
    draws = task_draws([*taught, *suite], dict(scores), resamples=resamples, seed=seed)

    def mean_change(changes: Sequence[Change]) -> dict[str, float | None]:
        return _mean_change(changes, draws, level) if changes else undefined()

    last = len(taught)
    taught_last_at = {task: stage for stage, task in enumerate(taught, start=1)}
    return {
        "target_learning": mean_change([(task, 0, stage) for stage, task in enumerate(taught, start=1)]),
        "target_forgetting": mean_change([(task, s, last) for task, s in taught_last_at.items() if s < last]),
        "target_overall": mean_change([(task, 0, last) for task in taught_last_at]),
        "heldout_forgetting": _heldout([draws[task] for task in dict.fromkeys(suite)], last, level),
    }


def _mean_change(
    changes: Sequence[Change], draws: Mapping[str, Draws], level: float
) -> dict[str, float | None]:
    """Mean of paired changes, in the data and in each resample."""
    value = np.mean([draws[task].data[after] - draws[task].data[before] for task, before, after in changes])
    drawn = np.mean(
        [draws[task].drawn[:, after] - draws[task].drawn[:, before] for task, before, after in changes],
        axis=0,
    )
    parts: dict[str, Floats] = {}  # a task changed twice has the same images both times
    for task, before, after in changes:
        influence = draws[task].influence
        parts[task] = parts.get(task, 0.0) + (influence[:, after] - influence[:, before]) / len(changes)
    interval = all(draws[task].interval for task in parts)
    return estimate(float(value), drawn, np.concatenate(list(parts.values())), level=level, interval=interval)


def _heldout(benchmarks: Sequence[Draws], last: int, level: float) -> dict[str, Any]:
    """Held-out forgetting with its stages, its worst stage, recovery and sum."""
    if not benchmarks:
        nothing: dict[str, Any] = {"per_stage": [undefined() for _ in range(last)]}
        return (
            undefined()
            | nothing
            | {
                "worst": undefined() | {"stage": None},
                "recovery": undefined(),
                "sum": undefined(),
            }
        )
    count, interval = len(benchmarks), all(benchmark.interval for benchmark in benchmarks)
    data = np.mean([_from_base(benchmark.data[None, :])[0] for benchmark in benchmarks], axis=0)  # [T]
    drawn = np.mean([_from_base(benchmark.drawn) for benchmark in benchmarks], axis=0)  # [R, T]
    influence = np.concatenate([_from_base(each.influence) for each in benchmarks]) / count  # [C, T]

    def one(value: float, resampled: Floats, influence: Floats | None) -> dict[str, float | None]:
        return estimate(value, resampled, influence, level=level, interval=interval)

    per_stage = [one(data[stage], drawn[:, stage], influence[:, stage]) for stage in range(last)]
    worst, drawn_worst = data.min(), drawn.min(axis=1)
    return {
        **per_stage[-1],
        "per_stage": per_stage,
        "worst": {**one(worst, drawn_worst, influence[:, data.argmin()]), "stage": int(data.argmin()) + 1},
        "recovery": one(data[-1] - worst, drawn[:, -1] - drawn_worst, None),
        "sum": one(data[-1] * count, drawn[:, -1] * count, influence[:, -1] * count),
    }


def _from_base(scores: Floats) -> Floats:
    """Changes from the base [R, T] of scores [R, T + 1]."""
    return np.asarray(scores[:, 1:] - scores[:, :1])


def _check(taught: Sequence[str], suite: Sequence[str], scores: Mapping[str, TaskScores]) -> None:
    if not taught:
        raise DataError("no stage was taught: learning and forgetting need at least one")
    both = sorted(set(taught) & set(suite))
    if both:
        raise DataError(f"task {both[0]} is a target and in the held-out suite, expected it in one of them")
    for task in (*taught, *suite):
        if task not in scores:
            known = ", ".join(sorted(scores)) or "none"
            raise DataError(f"task {task} has no scores (there are scores of: {known})")
        if scores[task].stages != len(taught):
            found = scores[task].stages
            raise DataError(
                f"task {task} has scores of {found} stages besides the base, expected {len(taught)}"
            )
