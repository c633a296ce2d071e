"""The figures of merit: learning and forgetting over the stages of a job.

With a[s, t] the score of task t after stage s, base[t] = a[0, t], T stages, and t_s the task of stage s:

    target learning      mean over stages s of a[s, t_s] - base[t_s]
    target forgetting    mean over tasks t last trained at a stage s_t < T of a[T, t] - a[s_t, t]
    target overall       mean over distinct targets t of a[T, t] - base[t]
    held-out forgetting  mean over the suite's benchmarks b of a[s, b] - base[b], for each stage s; the figure is s = T
      worst              the smallest of these over the stages; each resample chooses its own worst stage
      recovery           final - worst (never negative, so its interval carries no significance)
      sum                sum instead of mean over the suite, at s = T

All are in percentage points; negative values mean forgetting. Intervals are BCa intervals (see intervals.py) of a
bootstrap over images with the same draws for all stages of a task (see bootstrap.py). For recovery, which is never
negative and often exactly zero, they are plain percentiles. Intervals cover the choice of questions, not of training
seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmm_forget.errors import DataError
from lmm_forget.metrics.bootstrap import (
    BootstrapResamples,
    Floats,
    TaskScores,
    check_bootstrap_settings,
    resample_tasks,
)
from lmm_forget.metrics.intervals import estimate_with_interval, make_undefined_estimate

StageChange = tuple[str, int, int]  # task, stage before, stage after


def compute_figures_of_merit(
    trained_tasks: Sequence[str],
    suite: Sequence[str],
    scores: Mapping[str, TaskScores],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence_level: float = 0.95,
) -> dict[str, Any]:
    """The `figures` of results.json.

    trained_tasks  the tasks of stages 1..T, in order (a task may be trained again)
    suite          the held-out benchmarks (may be empty)
    scores         task -> scores with values [T + 1, n]

    Returns target_learning, target_forgetting, target_overall and heldout_forgetting, each {value, low, high} in
    points. heldout_forgetting also has per_stage (T estimates), worst (with `stage`, counted from 1), recovery and sum.
    If a figure is not defined (target forgetting of one stage, held-out forgetting without a suite), its three values
    are None; if a task has only one image, low and high are None.

    Raises DataError if there is no stage, a task's scores are missing or have another number of stages, or a target is
    in the suite.
    """
    check_bootstrap_settings(num_resamples, confidence_level)
    _check_tasks_and_scores(trained_tasks, suite, scores)
    resamples = resample_tasks([*trained_tasks, *suite], dict(scores), num_resamples=num_resamples, seed=seed)

    def estimate_change(changes: Sequence[StageChange]) -> dict[str, float | None]:
        return _estimate_mean_change(changes, resamples, confidence_level) if changes else make_undefined_estimate()

    last_stage = len(trained_tasks)
    last_stage_of_task = {task: stage for stage, task in enumerate(trained_tasks, start=1)}
    return {
        "target_learning": estimate_change([(task, 0, stage) for stage, task in enumerate(trained_tasks, start=1)]),
        "target_forgetting": estimate_change(
            [(task, s, last_stage) for task, s in last_stage_of_task.items() if s < last_stage]
        ),
        "target_overall": estimate_change([(task, 0, last_stage) for task in last_stage_of_task]),
        "heldout_forgetting": _compute_heldout_figures(
            [resamples[task] for task in dict.fromkeys(suite)], last_stage, confidence_level
        ),
    }


def _estimate_mean_change(
    changes: Sequence[StageChange], resamples: Mapping[str, BootstrapResamples], confidence_level: float
) -> dict[str, float | None]:
    """{value, low, high} of the mean of paired changes, in points."""
    observed = np.mean(
        [resamples[task].observed[after] - resamples[task].observed[before] for task, before, after in changes]
    )
    resampled = np.mean(
        [resamples[task].resampled[:, after] - resamples[task].resampled[:, before] for task, before, after in changes],
        axis=0,
    )
    influence_of_task: dict[str, Floats] = {}  # two changes of a task share its images
    for task, before, after in changes:
        influence = resamples[task].influence
        influence_of_task[task] = influence_of_task.get(task, 0.0) + (influence[:, after] - influence[:, before]) / len(
            changes
        )
    has_interval = all(resamples[task].has_interval for task in influence_of_task)
    return estimate_with_interval(
        float(observed),
        resampled,
        np.concatenate(list(influence_of_task.values())),
        confidence_level=confidence_level,
        has_interval=has_interval,
    )


def _compute_heldout_figures(
    benchmarks: Sequence[BootstrapResamples], num_stages: int, confidence_level: float
) -> dict[str, Any]:
    """Held-out forgetting per stage and at the last one, with worst stage, recovery and sum."""
    if not benchmarks:
        undefined_stages: dict[str, Any] = {"per_stage": [make_undefined_estimate() for _ in range(num_stages)]}
        return (
            make_undefined_estimate()
            | undefined_stages
            | {
                "worst": make_undefined_estimate() | {"stage": None},
                "recovery": make_undefined_estimate(),
                "sum": make_undefined_estimate(),
            }
        )
    num_benchmarks, has_interval = len(benchmarks), all(benchmark.has_interval for benchmark in benchmarks)
    observed = np.mean([_subtract_base(benchmark.observed[None, :])[0] for benchmark in benchmarks], axis=0)  # [T]
    resampled = np.mean([_subtract_base(benchmark.resampled) for benchmark in benchmarks], axis=0)  # [R, T]
    influence = (
        np.concatenate([_subtract_base(benchmark.influence) for benchmark in benchmarks]) / num_benchmarks
    )  # [C, T]

    def estimate_figure(value: float, resampled: Floats, influence: Floats | None) -> dict[str, float | None]:
        return estimate_with_interval(
            value, resampled, influence, confidence_level=confidence_level, has_interval=has_interval
        )

    per_stage = [
        estimate_figure(observed[stage], resampled[:, stage], influence[:, stage]) for stage in range(num_stages)
    ]
    worst, resampled_worst = observed.min(), resampled.min(axis=1)
    return {
        **per_stage[-1],
        "per_stage": per_stage,
        "worst": {
            **estimate_figure(worst, resampled_worst, influence[:, observed.argmin()]),
            "stage": int(observed.argmin()) + 1,
        },
        "recovery": estimate_figure(observed[-1] - worst, resampled[:, -1] - resampled_worst, None),
        "sum": estimate_figure(
            observed[-1] * num_benchmarks,
            resampled[:, -1] * num_benchmarks,
            influence[:, -1] * num_benchmarks,
        ),
    }


def _subtract_base(scores: Floats) -> Floats:
    """Changes from the base [R, T] of scores [R, T + 1]."""
    return np.asarray(scores[:, 1:] - scores[:, :1])


def _check_tasks_and_scores(
    trained_tasks: Sequence[str], suite: Sequence[str], scores: Mapping[str, TaskScores]
) -> None:
    if not trained_tasks:
        raise DataError("no stage was trained: learning and forgetting need at least one")
    overlapping_tasks = sorted(set(trained_tasks) & set(suite))
    if overlapping_tasks:
        raise DataError(
            f"task {overlapping_tasks[0]} is a target and in the held-out suite, expected it in one of them"
        )
    for task in (*trained_tasks, *suite):
        if task not in scores:
            known = ", ".join(sorted(scores)) or "none"
            raise DataError(f"task {task} has no scores (there are scores of: {known})")
        if scores[task].num_stages != len(trained_tasks):
            num_stages = scores[task].num_stages
            raise DataError(
                f"task {task} has scores of {num_stages} stages besides the base, expected {len(trained_tasks)}"
            )
