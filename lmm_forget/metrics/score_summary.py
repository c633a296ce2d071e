"""The score of a task at one stage with its standard error, as in results.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmm_forget.errors import DataError
from lmm_forget.metrics.bootstrap import POINTS, TaskScores, round_float, sum_by_cluster


def summarize_task_scores(
    values: ArrayLike, clusters: ArrayLike | None = None, groups: ArrayLike | None = None
) -> dict[str, float | int | None]:
    """{value, n, stderr} of one task at one stage, in points 0-100.

    values    [n] scores in 0..1
    clusters  [n] image ids (None: each sample is a cluster of its own)
    groups    [n] or None; categories of a macro task

    stderr is the cluster-robust (sandwich) standard error of the mean, or of the mean of group means by linearisation:
    sqrt(C / (C - 1) * sum over clusters of (sum of the cluster's influences) ** 2), where sample i of group g has the
    influence (x_i - mean_g) / (n_g G); Liang and Zeger (1986). It is None with fewer than two clusters.

    Raises DataError for scores outside 0..1 or labels of another length.
    """
    row = np.asarray(values, dtype=np.float64).reshape(1, -1)
    scores = TaskScores("of this summary", row, range(row.shape[1]) if clusters is None else clusters, groups)
    sums = sum_by_cluster(scores)
    value = sums.compute_metric(np.ones((1, sums.num_clusters)))[0, 0]
    influence = sums.compute_influence()[:, 0]
    num_clusters = sums.num_clusters
    stderr = None
    if num_clusters > 1:
        stderr = round_float(np.sqrt(num_clusters / (num_clusters - 1) * np.sum(influence**2)) * POINTS)
    return {"value": round_float(value * POINTS), "n": int(row.shape[1]), "stderr": stderr}


def build_score_entry(
    values: ArrayLike,
    clusters: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    tolerant_scores: Sequence[float | None] | None = None,
    compat_scores: Sequence[float | None] | None = None,
    score_kind: str = "strict",
) -> dict[str, float | int | None]:
    """A task's entry in `scores` of results.json: {value, n, stderr, strict, tolerant, compat}, in points.

    `values` [n] are the strict scores; for `clusters` and `groups` see `summarize_task_scores`. `tolerant_scores` [n]
    give the entry "tolerant", which is None unless every sample has one. `compat_scores` [n] are those of public code;
    the entry "compat" is their mean over the samples that have one, or None. `score_kind` ("strict" or "compat")
    chooses which of them value, n and stderr summarise.

    Raises DataError for `score_kind="compat"` if no sample has such a score.
    """
    images, group_labels = np.asarray(clusters), None if groups is None else np.asarray(groups)
    strict_summary = summarize_task_scores(values, images, group_labels)
    compat_summary = (
        _summarize_defined_scores(compat_scores, images, group_labels) if compat_scores is not None else None
    )
    if score_kind == "compat" and compat_summary is None:
        raise DataError("no answer has a compat score; use data.scoring=strict")
    tolerant_summary = (
        _summarize_defined_scores(tolerant_scores, images, group_labels)
        if tolerant_scores is not None and None not in tolerant_scores
        else None
    )
    return {
        **(compat_summary if score_kind == "compat" and compat_summary is not None else strict_summary),
        "strict": strict_summary["value"],
        "tolerant": None if tolerant_summary is None else tolerant_summary["value"],
        "compat": None if compat_summary is None else compat_summary["value"],
    }


def _summarize_defined_scores(
    scores: Sequence[float | None], clusters: NDArray[Any], groups: NDArray[Any] | None
) -> dict[str, float | int | None] | None:
    """`summarize_task_scores` over the samples that have a score; None if none has."""
    has_score = np.array([score is not None for score in scores], dtype=bool)
    if not has_score.any():
        return None
    values = [score for score in scores if score is not None]
    return summarize_task_scores(values, clusters[has_score], None if groups is None else groups[has_score])
