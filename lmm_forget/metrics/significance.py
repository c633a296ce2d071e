"""Is a change more than luck? Paired comparisons of one task at two stages."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, chdtrc

from lmm_forget.errors import DataError
from lmm_forget.metrics.bootstrap import Draws, TaskScores, check_settings, draw
from lmm_forget.metrics.intervals import estimate

_EXACT_BELOW = 25  # changed answers below which the chi-square approximation is not used


def mcnemar(before: ArrayLike, after: ArrayLike) -> dict[str, float | int | str]:
    """McNemar's test on paired right/wrong scores.

    before, after [n] of 0 and 1, the same samples in the same order. Returns gained (wrong, then right), lost
    (right, then wrong), n, p_value (two-sided) and method: "exact" (binomial) for fewer than 25 changed
    answers, else "chi2" with Edwards' continuity correction. It counts every question as independent; where
    many share an image, the clustered interval of `paired_change` is the wider and the better one. McNemar,
    Psychometrika 12 (1947) 153-157.

    Raises DataError if lengths differ or a score is neither 0 nor 1.
    """
    first, second = np.asarray(before, dtype=np.float64).ravel(), np.asarray(after, dtype=np.float64).ravel()
    if first.shape != second.shape:
        raise DataError(
            f"McNemar's test pairs {len(first)} samples with {len(second)}, expected the same samples"
        )
    if not (right_or_wrong(first) and right_or_wrong(second)):
        raise DataError("McNemar's test needs scores that are 0 or 1; use paired_change for partial scores")
    gained, lost = int(np.sum((first == 0) & (second == 1))), int(np.sum((first == 1) & (second == 0)))
    changed = gained + lost
    if changed < _EXACT_BELOW:
        method = "exact"
        p_value = min(1.0, 2.0 * float(bdtr(min(gained, lost), changed, 0.5)))
    else:
        method = "chi2"
        p_value = float(chdtrc(1, max(abs(gained - lost) - 1, 0) ** 2 / changed))
    return {"gained": gained, "lost": lost, "n": len(first), "p_value": p_value, "method": method}


def paired_change(
    scores: TaskScores, before: int, after: int, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> dict[str, Any]:
    """A task's change from stage `before` to stage `after` (0 is the base), in points.

    Returns {value, low, high, mcnemar}; `mcnemar` is None where scores are not all 0 or 1. Raises DataError if
    there is no such stage.
    """
    check_settings(resamples, level)
    for stage in (before, after):
        if not 0 <= stage <= scores.stages:
            raise DataError(f"task {scores.task}: no stage {stage}, there are 0 (base) to {scores.stages}")
    return _change(scores, draw(scores, resamples=resamples, seed=seed), before, after, level)


def changes_from_base(
    scores: TaskScores, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> list[dict[str, Any]]:
    """`paired_change` of every stage from the base, from one set of resamples."""
    check_settings(resamples, level)
    draws = draw(scores, resamples=resamples, seed=seed)
    return [_change(scores, draws, 0, stage, level) for stage in range(1, scores.stages + 1)]


def _change(scores: TaskScores, draws: Draws, before: int, after: int, level: float) -> dict[str, Any]:
    change = estimate(
        float(draws.data[after] - draws.data[before]),
        draws.drawn[:, after] - draws.drawn[:, before],
        draws.influence[:, after] - draws.influence[:, before],
        level=level,
        interval=draws.interval,
    )
    first, second = scores.values[before], scores.values[after]
    binary = right_or_wrong(first) and right_or_wrong(second)
    return {**change, "mcnemar": mcnemar(first, second) if binary else None}


def right_or_wrong(values: np.ndarray) -> bool:
    """Whether every score is 0 or 1."""
    return bool(np.all((values == 0) | (values == 1)))
