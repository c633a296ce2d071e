"""One score with its standard error: what results.json says about a task at one stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lmm_forget.metrics.bootstrap import POINTS, Floats, TaskScores, cluster_sums, tidy


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
    counts = sums.counts.sum(axis=0)  # [G]
    means = sums.sums[:, 0, :].sum(axis=0) / counts
    influence: Floats = ((sums.sums[:, 0, :] - sums.counts * means) / (counts * len(counts))).sum(axis=1)
    n_clusters = sums.clusters
    stderr = None
    if n_clusters > 1:
        stderr = tidy(np.sqrt(n_clusters / (n_clusters - 1) * np.sum(influence**2)) * POINTS)
    return {"value": tidy(means.mean() * POINTS), "n": int(row.shape[1]), "stderr": stderr}


def results_scores(
    values: ArrayLike,
    clusters: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    tolerant: Sequence[float | None] | None = None,
) -> dict[str, float | int | None]:
    """A task's entry in `scores` of results.json: {value, n, stderr, tolerant}, in points.

    `tolerant` [n] are the format-tolerant scores; the entry is None unless every sample has one.
    """
    entry = task_summary(values, clusters, groups)
    defined = [score for score in tolerant if score is not None] if tolerant is not None else []
    complete = bool(defined) and tolerant is not None and len(defined) == len(tolerant)
    entry["tolerant"] = task_summary(defined, clusters, groups)["value"] if complete else None
    return entry
