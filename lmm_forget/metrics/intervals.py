"""The bias-corrected and accelerated (BCa) bootstrap interval of a change, with the image as unit.

If few images cause a change, its distribution is skewed, and plain percentiles of the resamples miss the true value too
often (benchmarks/coverage.py measures how often). BCa corrects the two percentiles for the bias of the resamples and
for the skewness of the images' influences (Efron, Journal of the American Statistical Association 82, 1987, 171-185).
The interval is widened as Student's t is wider than the normal distribution, because percentiles of few images are too
narrow (Hesterberg, The American Statistician 69, 2015, 371-386).
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from lmm_forget.metrics.bootstrap import Floats, round_float


def compute_bca_interval(
    value: float, resampled: Floats, influence: Floats, *, confidence_level: float = 0.95
) -> tuple[float, float]:
    """(low, high) of the interval of `value`, from its resamples [R] and the influence of each image on it [C].

    Both are `value` if all resamples are equal or there are fewer than two images.
    """
    clusters = len(influence)
    if clusters < 2 or float(np.ptp(resampled)) <= 1e-9 * max(1.0, abs(value)):
        return value, value
    spread = float(np.sum(influence**2))
    acceleration = float(np.sum(influence**3)) / (6.0 * spread**1.5) if spread > 0.0 else 0.0
    tolerance = 1e-9 * max(1.0, abs(value))
    share_below = (np.mean(resampled < value - tolerance) + np.mean(resampled <= value + tolerance)) / 2.0
    bias = float(ndtri(np.clip(share_below, 1.0 / len(resampled), 1.0 - 1.0 / len(resampled))))
    widened_quantile = np.sqrt(clusters / (clusters - 1)) * float(stdtrit(clusters - 1, (1.0 + confidence_level) / 2.0))
    low, high = np.quantile(
        resampled,
        [_adjust_percentile(bias, acceleration, quantile) for quantile in (-widened_quantile, widened_quantile)],
    )
    return float(low), float(high)


def estimate_with_interval(
    value: float,
    resampled: Floats,
    influence: Floats | None,
    *,
    confidence_level: float = 0.95,
    has_interval: bool = True,
) -> dict[str, float | None]:
    """{value, low, high}: the value in the data with its interval, from resamples [R] and influences [C].

    It is the BCa interval, or without influences the plain percentiles of the resamples. low and high are None if
    `has_interval` is False.
    """
    if not has_interval:
        return {"value": round_float(value), "low": None, "high": None}
    if influence is None:
        tail = (1.0 - confidence_level) / 2.0
        low, high = (float(end) for end in np.quantile(resampled, [tail, 1.0 - tail]))
    else:
        low, high = compute_bca_interval(value, resampled, influence, confidence_level=confidence_level)
    return {"value": round_float(value), "low": round_float(low), "high": round_float(high)}


def make_undefined_estimate() -> dict[str, float | None]:
    """The estimate of a figure that is not defined for this job: all None."""
    return {"value": None, "low": None, "high": None}


def _adjust_percentile(bias: float, acceleration: float, quantile: float) -> float:
    """The percentile that BCa uses for a normal quantile; 0 or 1 where the formula is not defined."""
    shifted = bias + quantile
    below = 1.0 - acceleration * shifted
    if below <= 0.0:
        return float(shifted > 0.0)
    return float(ndtr(bias + shifted / below))
