"""The cluster bootstrap: images are drawn with replacement, each with all its questions.

Questions about one image are not independent, so images are drawn instead of questions. The same draws are used for all
stages of a task, so the stages are paired: a difference between two stages is computed within each draw. For the
resampling see Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 8; intervals.py computes intervals
from the draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmm_forget.errors import DataError

Floats = NDArray[np.float64]
POINTS = 100.0  # a score of 1.0 is 100 percentage points
_MAX_BLOCK_ELEMENTS = 1 << 22  # elements of the weights in memory at a time (32 MiB)
_DECIMALS = 10  # removes differences by the order of summation, so that equal runs write equal bytes


@dataclass(frozen=True, eq=False)
class TaskScores:
    """Scores of one task at the base and after each stage.

    values    [S + 1, n] in 0..1; row 0 is the base, row s the model after stage s
    clusters  [n] image ids; samples that share one are drawn together
    groups    [n] or None; categories of a macro task, whose metric is the mean of the groups' means

    Raises DataError for shapes that do not fit, an empty task, or scores outside 0..1 (NaN included).
    """

    task: str
    values: Floats
    clusters: ArrayLike
    groups: ArrayLike | None = None

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 1:
            raise DataError(f"task {self.task}: scores have shape {values.shape}, expected [stages + 1, samples]")
        object.__setattr__(self, "values", values)
        check_score_range(self.task, values)
        for name in ("clusters", "groups"):
            labels = getattr(self, name)
            if labels is not None:
                object.__setattr__(self, name, to_label_array(self.task, name, labels, values.shape[1]))

    @property
    def num_stages(self) -> int:
        """Number of stages, without the base."""
        return int(self.values.shape[0]) - 1


@dataclass(frozen=True, eq=False)
class ClusterSums:
    """Sums of scores [C, S + 1, G] and numbers of samples [C, G] per cluster (C) and group (G)."""

    sums: Floats
    counts: Floats

    @property
    def num_clusters(self) -> int:
        """Number of clusters C."""
        return int(self.counts.shape[0])

    def compute_metric(self, weights: Floats) -> Floats:
        """The task's metric [R, S + 1] in 0..1 for cluster weights [R, C].

        It is the mean over groups of their weighted means; a draw ignores groups without weight.
        """
        clusters, rows, groups = self.sums.shape
        totals = (weights @ self.sums.reshape(clusters, rows * groups)).reshape(-1, rows, groups)
        counts = weights @ self.counts
        has_weight = counts > 0
        means = np.divide(totals, counts[:, None, :], out=np.zeros_like(totals), where=has_weight[:, None, :])
        return np.asarray(means.sum(axis=2) / has_weight.sum(axis=1)[:, None])

    def compute_influence(self) -> Floats:
        """The influence [C, S + 1] of each cluster on the task's metric in 0..1; every column sums to zero.

        It is the first-order change of the metric per unit of the cluster's weight.
        """
        counts = self.counts.sum(axis=0)  # [G]
        means = self.sums.sum(axis=0) / counts  # [S + 1, G]
        parts = (self.sums - self.counts[:, None, :] * means) / (counts * len(counts))
        return np.asarray(parts.sum(axis=2))


def check_score_range(task: str, values: Floats) -> None:
    """Raise DataError unless every score is in 0..1."""
    if not bool(np.all((values >= 0.0) & (values <= 1.0))):
        invalid_score = values[~((values >= 0.0) & (values <= 1.0))].flat[0]
        raise DataError(f"task {task}: found the score {invalid_score}, scores are in 0..1")


def to_label_array(task: str, name: str, labels: ArrayLike, num_samples: int) -> NDArray[np.str_]:
    """Labels as an array of strings [n]. Raises DataError if there is not one label for each sample."""
    array = np.array([str(label) for label in np.asarray(labels, dtype=object).ravel()], dtype=np.str_)
    if array.shape != (num_samples,):
        raise DataError(f"task {task}: {len(array)} {name} for {num_samples} samples, expected one for each")
    return array


def sum_by_cluster(scores: TaskScores) -> ClusterSums:
    """Sums and counts per cluster and group. Clusters are sorted, so the order of samples does not matter."""
    labels, cluster = np.unique(np.asarray(scores.clusters), return_inverse=True)
    if scores.groups is None:
        groups, group = 1, np.zeros(len(cluster), dtype=np.intp)
    else:
        names, group = np.unique(np.asarray(scores.groups), return_inverse=True)
        groups = len(names)
    cell_index = cluster * groups + group
    num_cells = len(labels) * groups
    counts = np.bincount(cell_index, minlength=num_cells).astype(np.float64).reshape(len(labels), groups)
    sums = np.stack([np.bincount(cell_index, weights=row, minlength=num_cells) for row in scores.values]).astype(
        np.float64
    )
    return ClusterSums(sums=sums.reshape(-1, len(labels), groups).transpose(1, 0, 2).copy(), counts=counts)


def draw_cluster_weights(rng: np.random.Generator, num_resamples: int, num_clusters: int) -> Iterator[Floats]:
    """Weights of `num_clusters` draws with replacement per row, `num_resamples` rows, yielded in blocks [r, C]."""
    block = max(1, _MAX_BLOCK_ELEMENTS // num_clusters)
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        drawn = rng.integers(0, num_clusters, size=(rows, num_clusters))
        drawn += np.arange(rows)[:, None] * num_clusters
        yield (np.bincount(drawn.ravel(), minlength=rows * num_clusters).reshape(rows, num_clusters).astype(np.float64))


@dataclass(frozen=True, eq=False)
class BootstrapResamples:
    """A task's metric in the data and in every resample, in points.

    observed      [S + 1] the metric in the data
    resampled     [R, S + 1] the metric in each resample
    influence     [C, S + 1] the influence of each cluster on `observed`
    has_interval  False if there is only one cluster, which cannot be resampled
    """

    observed: Floats
    resampled: Floats
    influence: Floats
    has_interval: bool


def resample_task(scores: TaskScores, *, num_resamples: int = 2000, seed: int = 0) -> BootstrapResamples:
    """Resample one task's image clusters, jointly for all stages.

    The generator is seeded by (seed, task name), so a task's draws do not depend on other tasks or their order.
    """
    sums = sum_by_cluster(scores)
    name = int.from_bytes(hashlib.sha256(scores.task.encode()).digest()[:8], "big")
    rng = np.random.default_rng([seed, name])
    observed = sums.compute_metric(np.ones((1, sums.num_clusters)))[0] * POINTS
    resampled = np.concatenate(
        [sums.compute_metric(block) for block in draw_cluster_weights(rng, num_resamples, sums.num_clusters)]
    )
    return BootstrapResamples(
        observed=observed,
        resampled=resampled * POINTS,
        influence=sums.compute_influence() * POINTS,
        has_interval=sums.num_clusters > 1,
    )


def round_float(number: float) -> float:
    """Convert to float, rounded to 10 decimals, without negative zero."""
    return round(float(number), _DECIMALS) + 0.0


def check_bootstrap_settings(num_resamples: int, confidence_level: float) -> None:
    """Raise DataError for a number of resamples below 1 or a confidence level outside 0..1."""
    if num_resamples < 1:
        raise DataError(f"resamples={num_resamples}: expected at least 1 (2000 is usual)")
    if not 0.0 < confidence_level < 1.0:
        raise DataError(f"level={confidence_level}: expected a number between 0 and 1 (0.95 is usual)")


def resample_tasks(
    tasks: Sequence[str], scores: dict[str, TaskScores], *, num_resamples: int, seed: int
) -> dict[str, BootstrapResamples]:
    """`resample_task` for every task in `tasks`, once for tasks that occur several times."""
    return {task: resample_task(scores[task], num_resamples=num_resamples, seed=seed) for task in dict.fromkeys(tasks)}
