"""What a part of a benchmark can tell apart, before anything is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

CHANGED = 0.2
"""Assumed share of the questions whose answer turns from right to wrong or back between two models."""
Z = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


def half_width(questions: int, changed: float = CHANGED) -> float:
    """Half a 95 % interval of a paired change in accuracy, in points, at no true change.

    A question changes by ±1 with probability `changed`, so the mean over n questions has variance changed / n
    (the variance under McNemar's null hypothesis).
    """
    return 100.0 * Z * math.sqrt(changed / questions)


def mean_half_width(questions: Sequence[int], changed: float = CHANGED) -> float:
    """The same for the mean over benchmarks with so many questions each, in points."""
    return math.sqrt(sum(half_width(n, changed) ** 2 for n in questions)) / len(questions)


def resolution(config: Mapping[str, Any]) -> str | None:
    """One line on what the subsets of a resolved configuration's suite can tell apart; None without subsets."""
    suite = config["suite"]
    parts = [config["tasks"][name].get("subset") for name in suite["tasks"]]
    sizes = [part["samples"] for part in parts if part]
    if not sizes or len(sizes) < len(parts) or not all(isinstance(size, int) for size in sizes):
        return None
    limit = config["data"].get("eval_samples")
    asked = [min(size, limit) if limit else size for size in sizes]
    each = sorted({f"{half_width(n):.1f}" for n in asked})
    return (
        f"suite {suite['name']}: {len(asked)} benchmarks, {sum(asked):,} questions; a benchmark's change is known to "
        f"±{' to '.join(each)} points, their mean to ±{mean_half_width(asked):.1f} "
        f"(95 %, if {CHANGED:.0%} of the answers turn from right to wrong or back)"
    )
