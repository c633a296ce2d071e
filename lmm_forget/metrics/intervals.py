"""The interval of a change: bias-corrected and accelerated (BCa), with the image as its unit.

A change that sits in few images is skewed, and the plain percentiles of its resamples then miss the truth too often
(benchmarks/coverage.py counts how often). BCa moves the two percentiles by how far the resamples lie to one side of the
data and by the skewness of the images' influences: Efron, Journal of the American Statistical Association 82 (1987)
171-185. Its level is widened as Student's t is wider than the normal, which percentiles of few images are not:
Hesterberg, The American Statistician 69 (2015) 371-386.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from lmm_forget.metrics.bootstrap import Floats, round_float


def compute_bca_interval(
    value: float, resampled: Floats, influence: Floats, *, confidence_level: float = 0.95
) -> tuple[float, float]:
    """Low and high end of `value`'s interval, from its resamples [R] and each image's influence on it [C].

    Both ends are the value where no resample differs, or with fewer than two images.
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
        [_adjust_percentile(bias, acceleration, arm) for arm in (-widened_quantile, widened_quantile)],
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
    """{value, low, high}: the value in the data with its `bca` interval.

    Without influences, the plain percentiles of the resamples. low and high are None where `interval` is False.
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
    """The estimate of a figure that does not exist for this run."""
    return {"value": None, "low": None, "high": None}


def _adjust_percentile(bias: float, acceleration: float, quantile: float) -> float:
    """The percentile that BCa takes for a plain normal quantile `arm`; 0 or 1 where the formula has no answer."""
    shifted = bias + quantile
    below = 1.0 - acceleration * shifted
    if below <= 0.0:
        return float(shifted > 0.0)
    return float(ndtr(bias + shifted / below))
