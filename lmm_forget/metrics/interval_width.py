"""Predict the width of confidence intervals on a subset of a benchmark, before evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ASSUMED_CHANGE_RATE = 0.2
"""Assumed fraction of questions whose answer changes from right to wrong or back between two models."""
NORMAL_QUANTILE = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


def compute_interval_half_width(num_questions: int, change_rate: float = ASSUMED_CHANGE_RATE) -> float:
    """Half the width, in points, of the 95 % interval of a paired change in accuracy if there is no true change.

    Each question changes by ±1 with probability `change_rate`, so the mean over n questions has the variance
    change_rate / n (the variance under McNemar's null hypothesis).
    """
    return 100.0 * NORMAL_QUANTILE * math.sqrt(change_rate / num_questions)


def compute_mean_half_width(question_counts: Sequence[int], change_rate: float = ASSUMED_CHANGE_RATE) -> float:
    """As `compute_interval_half_width`, for the mean over benchmarks with these numbers of questions, in points."""
    return math.sqrt(sum(compute_interval_half_width(n, change_rate) ** 2 for n in question_counts)) / len(
        question_counts
    )


def describe_interval_widths(config: Mapping[str, Any]) -> str | None:
    """A line with the interval widths of the suite's subsets in a resolved configuration; None without subsets."""
    suite = config["suite"]
    subsets = [config["tasks"][name].get("subset") for name in suite["tasks"]]
    sizes = [subset["samples"] for subset in subsets if subset]
    if not sizes or len(sizes) < len(subsets) or not all(isinstance(size, int) for size in sizes):
        return None
    limit = config["data"].get("eval_samples")
    question_counts = [min(size, limit) if limit else size for size in sizes]
    half_widths = sorted({f"{compute_interval_half_width(n):.1f}" for n in question_counts})
    return (
        f"suite {suite['name']}: {len(question_counts)} benchmarks, {sum(question_counts):,} questions; a "
        "benchmark's change is known to "
        f"±{' to '.join(half_widths)} points, their mean to ±{compute_mean_half_width(question_counts):.1f} "
        f"(95 %, if {ASSUMED_CHANGE_RATE:.0%} of the answers turn from right to wrong or back)"
    )
