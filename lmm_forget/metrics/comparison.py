"""Compare two models that answered the same questions: change, interval, significance test and detectable change.

The unit is the image, because answers to questions about one image often change together: the interval resamples
images, the test swaps the two models' answers image by image, and the standard error sums over images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import gammaln, ndtri

from lmm_forget.errors import DataError
from lmm_forget.metrics.bootstrap import (
    POINTS,
    BootstrapResamples,
    Floats,
    TaskScores,
    check_bootstrap_settings,
    resample_task,
    round_float,
    sum_by_cluster,
)
from lmm_forget.metrics.intervals import estimate_with_interval
from lmm_forget.metrics.significance import is_binary, run_mcnemar_test

NUM_SWAPS = 10_000
"""Random swaps if the exact distribution cannot be computed; the smallest p-value is then 1 / 10,001."""
_MAX_ENUMERATED_IMAGES = 12  # up to this number of images all 2 ** 12 swaps are enumerated
_MIN_SIGNIFICANT_CHANGES = 6  # fewer changes are never significant at 5 %: 2 * 0.5 ** 6 = 0.031
_POWER_FACTOR = float(ndtri(0.975) + ndtri(0.8))


def compare_task_scores(scores: TaskScores, *, num_resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Compare two models on one task: row 0 of `scores` is the first model, row 1 the second.

    Returns a dictionary (scores and changes in points):

    - n, images: numbers of questions and of images
    - before, after: the scores of the two models
    - value, low, high, stderr: the change, its 95 % interval (`compute_bca_interval`) and its standard error
    - p_value: of the swap test (`compute_swap_test_p_value`)
    - gained, lost: numbers of questions whose score rose and fell
    - resolvable: the change that these questions show at the 5 % level with 80 % power (`compute_detectable_change`)
    - mcnemar: McNemar's test for comparison, which treats questions as independent (None for partial scores)

    low, high, stderr and resolvable are None with a single image. Raises DataError unless there are two rows.
    """
    _require_two_rows([scores])
    check_bootstrap_settings(num_resamples, 0.95)
    resamples, cluster_changes = (
        resample_task(scores, num_resamples=num_resamples, seed=seed),
        _compute_cluster_changes(scores),
    )
    influence = _compute_change_influence(resamples)
    first, second = scores.values
    binary = is_binary(first) and is_binary(second)
    stderr = _compute_stderr(influence) if resamples.has_interval else None
    return {
        "n": int(scores.values.shape[1]),
        "images": len(cluster_changes),
        "before": round_float(resamples.observed[0]),
        "after": round_float(resamples.observed[1]),
        **_estimate_mean_change([resamples], influence),
        "stderr": stderr,
        "p_value": compute_swap_test_p_value(cluster_changes, seed=_derive_seed(seed, scores.task)),
        "gained": int(np.sum(second > first)),
        "lost": int(np.sum(second < first)),
        "resolvable": None if stderr is None else compute_detectable_change(stderr, scores.values.shape[1]),
        "mcnemar": run_mcnemar_test(first, second) if binary else None,
    }


def compare_mean_scores(tasks: Sequence[TaskScores], *, num_resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Compare two models by their mean change over several tasks with equal weights.

    Images are resampled within their task. Returns {tasks, value, low, high, stderr, p_value, gained, lost, resolvable}
    as in `compare_task_scores`. Raises DataError without tasks.
    """
    _require_two_rows(tasks)
    check_bootstrap_settings(num_resamples, 0.95)
    resamples = [resample_task(scores, num_resamples=num_resamples, seed=seed) for scores in tasks]
    cluster_changes = np.concatenate([_compute_cluster_changes(scores) for scores in tasks]) / len(tasks)
    influences = [_compute_change_influence(task_resamples) for task_resamples in resamples]
    has_intervals = all(task_resamples.has_interval for task_resamples in resamples)
    stderr = (
        float(np.sqrt(sum(_compute_stderr(influence) ** 2 for influence in influences)) / len(tasks))
        if has_intervals
        else None
    )
    min_questions = min(int(scores.values.shape[1]) for scores in tasks) * len(tasks)
    return {
        "tasks": [scores.task for scores in tasks],
        **_estimate_mean_change(resamples, np.concatenate(influences) / len(tasks)),
        "stderr": None if stderr is None else round_float(stderr),
        "p_value": compute_swap_test_p_value(
            cluster_changes, seed=_derive_seed(seed, *(scores.task for scores in tasks))
        ),
        "gained": sum(int(np.sum(scores.values[1] > scores.values[0])) for scores in tasks),
        "lost": sum(int(np.sum(scores.values[1] < scores.values[0])) for scores in tasks),
        "resolvable": None if stderr is None else compute_detectable_change(stderr, min_questions),
    }


def compute_swap_test_p_value(cluster_changes: Floats, *, seed: int = 0, num_swaps: int = NUM_SWAPS) -> float:
    """Two-sided p-value of the hypothesis that the two models are exchangeable, from each image's change [C].

    `cluster_changes` may have any common unit. Under the hypothesis, swapping the two models' answers to all questions
    about an image is as likely as not swapping them. The sum of the changes is compared with its distribution over all
    2 ** C choices of signs: a randomisation test (Fisher, The Design of Experiments, 1935, section 21) with the image
    as its unit. With right/wrong scores and one question per image it is McNemar's exact test. The distribution is
    exact if the changes are multiples of one step (as for right/wrong scores) or few; else `num_swaps` swaps are
    sampled, and the p-value is (1 + hits) / (1 + num_swaps).
    """
    sizes = np.abs(np.asarray(cluster_changes, dtype=np.float64))
    nonzero_changes = np.asarray(cluster_changes, dtype=np.float64)[sizes > 1e-12]
    if not len(nonzero_changes):
        return 1.0
    sizes = np.abs(nonzero_changes)
    multiples = nonzero_changes / sizes.min()
    rounded_multiples = np.rint(multiples)
    if np.allclose(multiples, rounded_multiples, rtol=0, atol=1e-6) and np.abs(rounded_multiples).sum() < 2e5:
        return _compute_exact_swap_p_value(rounded_multiples.astype(np.int64))
    # rounding errors must not decide whether an equal sum counts
    limit = abs(nonzero_changes.sum()) - 1e-9 * sizes.sum()
    if len(nonzero_changes) <= _MAX_ENUMERATED_IMAGES:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(nonzero_changes))[:, None] >> np.arange(len(nonzero_changes))) & 1)
        return float(np.mean(np.abs(signs @ nonzero_changes) >= limit))
    rng = np.random.default_rng(seed)
    hits, block = 0, max(1, (1 << 22) // len(nonzero_changes))
    for start in range(0, num_swaps, block):
        flips = rng.integers(0, 2, size=(min(block, num_swaps - start), len(nonzero_changes)), dtype=np.int8)
        hits += int(np.sum(np.abs((2.0 * flips - 1.0) @ nonzero_changes) >= limit))
    return (1 + hits) / (1 + num_swaps)


def apply_holm_correction(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple tests; the result has the order of `p_values`.

    Holm, Scandinavian Journal of Statistics 6 (1979) 65-70: the k-th smallest of m p-values is multiplied by m - k + 1,
    raised to the largest corrected value before it, and limited to 1. Raises DataError for a number outside 0..1.
    """
    if not all(0.0 <= p <= 1.0 for p in p_values):
        raise DataError("Holm's correction needs p-values between 0 and 1")
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def compute_detectable_change(stderr: float, num_questions: int) -> float:
    """The smallest true change, in points, that a comparison shows at the two-sided 5 % level with 80 % power.

    It is (z_0.975 + z_0.8) times the standard error `stderr` (points) of the paired change, but at least 6 of the
    `num_questions` questions, because fewer than six changed answers are never significant.
    """
    return round_float(max(_POWER_FACTOR * stderr, _MIN_SIGNIFICANT_CHANGES / num_questions * POINTS))


def _compute_exact_swap_p_value(steps: np.ndarray) -> float:
    """The p-value of the swap test for whole-number changes, from the exact distribution of their signed sum."""
    sizes, counts = np.unique(np.abs(steps), return_counts=True)
    probabilities = np.ones(1)  # probabilities[u]: that the positive changes sum to u
    for size, count in zip(sizes, counts, strict=True):
        part = np.zeros(size * count + 1)
        part[::size] = _compute_heads_probabilities(count)
        probabilities = np.convolve(probabilities, part)
    total = int((sizes * counts).sum())
    up = int(steps[steps > 0].sum())
    if 2 * up == total:
        return 1.0
    # the sum is 2 u - total, symmetric about 0; summation from the small end keeps small probabilities exact
    return float(min(1.0, 2.0 * probabilities[: min(up, total - up) + 1].sum()))


def _compute_heads_probabilities(num_tosses: int) -> Floats:
    """Probabilities [num_tosses + 1] of 0, 1, …, `num_tosses` heads of a fair coin."""
    heads = np.arange(num_tosses + 1)
    ways = gammaln(num_tosses + 1) - gammaln(heads + 1) - gammaln(num_tosses - heads + 1)
    return np.asarray(np.exp(ways - num_tosses * np.log(2.0)))


def _compute_cluster_changes(scores: TaskScores) -> Floats:
    """The contribution [C] of each image to the task's change, in points; their sum is the change."""
    sums = sum_by_cluster(scores)
    share = sums.counts.sum(axis=0) * sums.counts.shape[1]  # n_g G
    return np.asarray(((sums.sums[:, 1, :] - sums.sums[:, 0, :]) / share).sum(axis=1) * POINTS)


def _compute_stderr(influence: Floats) -> float:
    """Cluster-robust standard error (see `summarize_task_scores`)."""
    clusters = len(influence)
    return round_float(np.sqrt(clusters / (clusters - 1) * np.sum(influence**2)))


def _estimate_mean_change(resamples: Sequence[BootstrapResamples], influence: Floats) -> dict[str, float | None]:
    """{value, low, high} of the mean change over tasks, in points."""
    observed = float(np.mean([each.observed[1] - each.observed[0] for each in resamples]))
    resampled = np.mean([each.resampled[:, 1] - each.resampled[:, 0] for each in resamples], axis=0)
    return estimate_with_interval(
        observed, resampled, influence, has_interval=all(each.has_interval for each in resamples)
    )


def _compute_change_influence(resamples: BootstrapResamples) -> Floats:
    """The influence [C] of each image on the task's change, in points."""
    return np.asarray(resamples.influence[:, 1] - resamples.influence[:, 0])


def _require_two_rows(tasks: Sequence[TaskScores]) -> None:
    if not tasks:
        raise DataError("no task to compare")
    for scores in tasks:
        if len(scores.values) != 2:
            raise DataError(f"task {scores.task}: a comparison needs two rows of scores, found {len(scores.values)}")


def _derive_seed(seed: int, *names: str) -> int:
    """A seed that is different for each test and the same in every run."""
    text = "/".join((str(seed), "swap", *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
