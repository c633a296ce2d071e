"""Significance of a change of one task between two stages, by paired comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, chdtrc

from lmm_forget.errors import DataError
from lmm_forget.metrics.bootstrap import (
    BootstrapResamples,
    TaskScores,
    check_bootstrap_settings,
    resample_task,
)
from lmm_forget.metrics.intervals import estimate_with_interval

_MAX_EXACT_CHANGES = 25  # with fewer changed answers the exact test is used instead of chi-square


def run_mcnemar_test(scores_before: ArrayLike, scores_after: ArrayLike) -> dict[str, float | int | str]:
    """McNemar's test on paired right/wrong scores.

    `scores_before` and `scores_after` are [n] of 0 and 1, the same samples in the same order. Returns gained (wrong,
    then right), lost (right, then wrong), n, p_value (two-sided) and method: "exact" (binomial) for fewer than 25
    changed answers, else "chi2" with Edwards' continuity correction. The test treats all questions as independent; if
    many share an image, use the wider interval of `estimate_paired_change`, which resamples images. McNemar,
    Psychometrika 12 (1947) 153-157.

    Raises DataError if lengths differ or a score is neither 0 nor 1.
    """
    first, second = (
        np.asarray(scores_before, dtype=np.float64).ravel(),
        np.asarray(scores_after, dtype=np.float64).ravel(),
    )
    if first.shape != second.shape:
        raise DataError(f"McNemar's test pairs {len(first)} samples with {len(second)}, expected the same samples")
    if not (is_binary(first) and is_binary(second)):
        raise DataError("McNemar's test needs scores that are 0 or 1; use estimate_paired_change for partial scores")
    gained, lost = int(np.sum((first == 0) & (second == 1))), int(np.sum((first == 1) & (second == 0)))
    num_changed = gained + lost
    if num_changed < _MAX_EXACT_CHANGES:
        method = "exact"
        p_value = min(1.0, 2.0 * float(bdtr(min(gained, lost), num_changed, 0.5)))
    else:
        method = "chi2"
        p_value = float(chdtrc(1, max(abs(gained - lost) - 1, 0) ** 2 / num_changed))
    return {"gained": gained, "lost": lost, "n": len(first), "p_value": p_value, "method": method}


def estimate_paired_change(
    scores: TaskScores,
    stage_before: int,
    stage_after: int,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence_level: float = 0.95,
) -> dict[str, Any]:
    """A task's change from `stage_before` to `stage_after` (0 is the base), in points.

    Returns {value, low, high, mcnemar}; mcnemar (`run_mcnemar_test`) is None if not all scores are 0 or 1. Raises
    DataError for a stage that does not exist.
    """
    check_bootstrap_settings(num_resamples, confidence_level)
    for stage in (stage_before, stage_after):
        if not 0 <= stage <= scores.num_stages:
            raise DataError(f"task {scores.task}: no stage {stage}, there are 0 (base) to {scores.num_stages}")
    return _estimate_change(
        scores,
        resample_task(scores, num_resamples=num_resamples, seed=seed),
        stage_before,
        stage_after,
        confidence_level,
    )


def estimate_changes_from_base(
    scores: TaskScores, *, num_resamples: int = 2000, seed: int = 0, confidence_level: float = 0.95
) -> list[dict[str, Any]]:
    """`estimate_paired_change` from the base to every stage, with one set of resamples."""
    check_bootstrap_settings(num_resamples, confidence_level)
    resamples = resample_task(scores, num_resamples=num_resamples, seed=seed)
    return [
        _estimate_change(scores, resamples, 0, stage, confidence_level) for stage in range(1, scores.num_stages + 1)
    ]


def _estimate_change(
    scores: TaskScores,
    resamples: BootstrapResamples,
    stage_before: int,
    stage_after: int,
    confidence_level: float,
) -> dict[str, Any]:
    change = estimate_with_interval(
        float(resamples.observed[stage_after] - resamples.observed[stage_before]),
        resamples.resampled[:, stage_after] - resamples.resampled[:, stage_before],
        resamples.influence[:, stage_after] - resamples.influence[:, stage_before],
        confidence_level=confidence_level,
        has_interval=resamples.has_interval,
    )
    first, second = scores.values[stage_before], scores.values[stage_after]
    binary = is_binary(first) and is_binary(second)
    return {**change, "mcnemar": run_mcnemar_test(first, second) if binary else None}


def is_binary(values: np.ndarray) -> bool:
    """Whether every score is 0 or 1."""
    return bool(np.all((values == 0) | (values == 1)))
