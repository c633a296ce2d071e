"""One score with its standard error: what results.json says about a task at one stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmm_forget.errors import DataError
from lmm_forget.metrics.bootstrap import POINTS, TaskScores, cluster_sums, tidy


def task_summary(
    values: ArrayLike, clusters: ArrayLike | None = None, groups: ArrayLike | None = None
) -> dict[str, float | int | None]:
    """{value, n, stderr} of one task at one stage, in points 0-100.

    values [n] in 0..1, clusters [n] image ids (None: each sample is its own), groups [n] categories of a
    macro task. stderr is the cluster-robust (sandwich) standard error of the mean, or of the mean of group
    means by its linearisation: sqrt(C / (C - 1) * sum over clusters of (sum of the cluster's influences) **
    2), where sample i of group g has the influence (x_i - mean_g) / (n_g G); Liang and Zeger (1986). None
    with fewer than two clusters.

    Raises DataError for scores outside 0..1 or labels that do not fit.
    """
    row = np.asarray(values, dtype=np.float64).reshape(1, -1)
    scores = TaskScores("of this summary", row, range(row.shape[1]) if clusters is None else clusters, groups)
    sums = cluster_sums(scores)
    value = sums.metric(np.ones((1, sums.clusters)))[0, 0]
    influence = sums.influence()[:, 0]
    n_clusters = sums.clusters
    stderr = None
    if n_clusters > 1:
        stderr = tidy(np.sqrt(n_clusters / (n_clusters - 1) * np.sum(influence**2)) * POINTS)
    return {"value": tidy(value * POINTS), "n": int(row.shape[1]), "stderr": stderr}


def results_scores(
    values: ArrayLike,
    clusters: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    tolerant: Sequence[float | None] | None = None,
    compat: Sequence[float | None] | None = None,
    scoring: str = "strict",
) -> dict[str, float | int | None]:
    """A task's entry in `scores` of results.json: {value, n, stderr, strict, tolerant, compat}, in points.

    `values` [n] are the strict scores. `tolerant` [n] are the format-tolerant ones; the entry is None unless
    every sample has one. `compat` [n] are the public code's; the entry is their mean over the samples that
    have one, None if none has. `scoring` ("strict" or "compat") says which of them value, n and stderr are.

    Raises DataError for `scoring="compat"` if no sample has such a score.
    """
    images, kinds = np.asarray(clusters), None if groups is None else np.asarray(groups)
    strict = task_summary(values, images, kinds)
    public = _defined(compat, images, kinds) if compat is not None else None
    if scoring == "compat" and public is None:
        raise DataError("no answer has a compat score; use data.scoring=strict")
    lenient = _defined(tolerant, images, kinds) if tolerant is not None and None not in tolerant else None
    return {
        **(public if scoring == "compat" and public is not None else strict),
        "strict": strict["value"],
        "tolerant": None if lenient is None else lenient["value"],
        "compat": None if public is None else public["value"],
    }


def _defined(
    scores: Sequence[float | None], clusters: NDArray[Any], groups: NDArray[Any] | None
) -> dict[str, float | int | None] | None:
    """The summary over the samples that have a score; None if none has."""
    held = np.array([score is not None for score in scores], dtype=bool)
    if not held.any():
        return None
    values = [score for score in scores if score is not None]
    return task_summary(values, clusters[held], None if groups is None else groups[held])
