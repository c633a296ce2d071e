"""Two models that answered the same questions: the change, its interval, a test, and what could have been seen.

The image is the unit throughout: questions about one image change together more often than not, so the interval
redraws images, the test swaps the two models' answers image by image, and the standard error sums over images.
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
    Draws,
    Floats,
    TaskScores,
    check_settings,
    cluster_sums,
    draw,
    tidy,
)
from lmm_forget.metrics.intervals import estimate
from lmm_forget.metrics.significance import mcnemar, right_or_wrong

SWAPS = 10_000
"""Random swaps where the test's distribution cannot be counted out; the smallest p-value is then 1 / 10,001."""
_COUNTED = 12  # images up to which all 2 ** 12 swaps are counted out
_FEWEST = 6  # as few changes, all in one direction, can be significant at 5 %: 2 * 0.5 ** 6 = 0.031
_POWER = float(ndtri(0.975) + ndtri(0.8))


def compare_pair(scores: TaskScores, *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """One task answered by two models: row 0 of `scores` is the first, row 1 the second.

    Returns, in points where it is no count or probability: `n` questions about `images` images; `before` and `after`;
    the change `value` with its 95 % interval `low`, `high` (`intervals.bca`) and standard error `stderr`; `p_value` of
    the swap test (see `swap_test`); `gained` and `lost`, the questions whose score rose and fell; `resolvable`, the
    change that this sample would show at the 5 % level four times in five; and `mcnemar`, McNemar's test for
    comparison (None for partial scores), which takes every question for independent.

    `low`, `high`, `stderr` and `resolvable` are None with a single image. Raises DataError unless there are two rows.
    """
    _check([scores])
    check_settings(resamples, 0.95)
    drawn, change = draw(scores, resamples=resamples, seed=seed), _changes(scores)
    influence = _influence(drawn)
    first, second = scores.values
    binary = right_or_wrong(first) and right_or_wrong(second)
    stderr = _stderr(influence) if drawn.interval else None
    return {
        "n": int(scores.values.shape[1]),
        "images": len(change),
        "before": tidy(drawn.data[0]),
        "after": tidy(drawn.data[1]),
        **_estimate([drawn], influence),
        "stderr": stderr,
        "p_value": swap_test(change, seed=_seed(seed, scores.task)),
        "gained": int(np.sum(second > first)),
        "lost": int(np.sum(second < first)),
        "resolvable": None if stderr is None else resolvable(stderr, scores.values.shape[1]),
        "mcnemar": mcnemar(first, second) if binary else None,
    }


def compare_mean(tasks: Sequence[TaskScores], *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The mean change over several tasks, each as in `compare_pair`: tasks weigh the same, images stay in their task.

    Returns {tasks, value, low, high, stderr, p_value, gained, lost, resolvable}. Raises DataError without tasks.
    """
    _check(tasks)
    check_settings(resamples, 0.95)
    draws = [draw(scores, resamples=resamples, seed=seed) for scores in tasks]
    change = np.concatenate([_changes(scores) for scores in tasks]) / len(tasks)
    influences = [_influence(each) for each in draws]
    whole = all(each.interval for each in draws)
    stderr = float(np.sqrt(sum(_stderr(each) ** 2 for each in influences)) / len(tasks)) if whole else None
    fewest = min(int(scores.values.shape[1]) for scores in tasks) * len(tasks)
    return {
        "tasks": [scores.task for scores in tasks],
        **_estimate(draws, np.concatenate(influences) / len(tasks)),
        "stderr": None if stderr is None else tidy(stderr),
        "p_value": swap_test(change, seed=_seed(seed, *(scores.task for scores in tasks))),
        "gained": sum(int(np.sum(scores.values[1] > scores.values[0])) for scores in tasks),
        "lost": sum(int(np.sum(scores.values[1] < scores.values[0])) for scores in tasks),
        "resolvable": None if stderr is None else resolvable(stderr, fewest),
    }


def swap_test(changes: Floats, *, seed: int = 0, swaps: int = SWAPS) -> float:
    """Two-sided p-value of "the two models are exchangeable", from each image's change [C] (any common unit).

    If they were, swapping their answers to all questions about an image would be as likely as not: the sum of the
    changes is compared with its distribution over all 2 ** C choices of signs. That is a randomisation test (Fisher,
    The Design of Experiments, 1935, section 21) with the image as its unit; with right/wrong scores and one question
    per image it is McNemar's exact test. The distribution is counted out where changes are multiples of one step (as
    with right/wrong scores) or few; else it is sampled, (1 + hits) / (1 + swaps).
    """
    sizes = np.abs(np.asarray(changes, dtype=np.float64))
    moved = np.asarray(changes, dtype=np.float64)[sizes > 1e-12]
    if not len(moved):
        return 1.0
    sizes = np.abs(moved)
    multiples = moved / sizes.min()
    whole = np.rint(multiples)
    if np.allclose(multiples, whole, rtol=0, atol=1e-6) and np.abs(whole).sum() < 2e5:
        return _counted(whole.astype(np.int64))
    # what rounding makes of two equal sums must not decide whether one of them counts
    limit = abs(moved.sum()) - 1e-9 * sizes.sum()
    if len(moved) <= _COUNTED:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1)
        return float(np.mean(np.abs(signs @ moved) >= limit))
    rng = np.random.default_rng(seed)
    hits, block = 0, max(1, (1 << 22) // len(moved))
    for start in range(0, swaps, block):
        flips = rng.integers(0, 2, size=(min(block, swaps - start), len(moved)), dtype=np.int8)
        hits += int(np.sum(np.abs((2.0 * flips - 1.0) @ moved) >= limit))
    return (1 + hits) / (1 + swaps)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the order given.

    The k-th smallest of m is multiplied by m - k + 1, then none may fall below a smaller one's, and none exceeds 1.
    Holm, Scandinavian Journal of Statistics 6 (1979) 65-70. Raises DataError for a number outside 0..1.
    """
    if not all(0.0 <= p <= 1.0 for p in p_values):
        raise DataError("Holm's correction needs p-values between 0 and 1")
    corrected = [1.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = least
    return corrected


def resolvable(stderr: float, n: int) -> float:
    """The smallest true change, in points, that n questions show at the two-sided 5 % level with 80 % power.

    (z_0.975 + z_0.8) times the standard error of the paired change, and never less than six questions: fewer than
    six changed answers cannot be significant, however much they agree.
    """
    return tidy(max(_POWER * stderr, _FEWEST / n * POINTS))


def _counted(steps: np.ndarray) -> float:
    """The swap test of whole numbers, by the exact distribution of their signed sum."""
    sizes, counts = np.unique(np.abs(steps), return_counts=True)
    ways = np.ones(1)  # ways[u]: probability that the steps swapped upwards add up to u
    for size, count in zip(sizes, counts, strict=True):
        part = np.zeros(size * count + 1)
        part[::size] = _fair_coin(count)
        ways = np.convolve(ways, part)
    total = int((sizes * counts).sum())
    up = int(steps[steps > 0].sum())
    if 2 * up == total:
        return 1.0
    # the sum is 2 u - total, symmetric about 0; adding from the small end keeps small probabilities exact
    return float(min(1.0, 2.0 * ways[: min(up, total - up) + 1].sum()))


def _fair_coin(tosses: int) -> Floats:
    """Probability of 0, 1, … `tosses` heads."""
    heads = np.arange(tosses + 1)
    ways = gammaln(tosses + 1) - gammaln(heads + 1) - gammaln(tosses - heads + 1)
    return np.asarray(np.exp(ways - tosses * np.log(2.0)))


def _changes(scores: TaskScores) -> Floats:
    """Each image's part [C] of the task's change, in points: they add up to it."""
    sums = cluster_sums(scores)
    share = sums.counts.sum(axis=0) * sums.counts.shape[1]  # n_g G
    return np.asarray(((sums.sums[:, 1, :] - sums.sums[:, 0, :]) / share).sum(axis=1) * POINTS)


def _stderr(influence: Floats) -> float:
    """Cluster-robust standard error (see `task_summary`)."""
    clusters = len(influence)
    return tidy(np.sqrt(clusters / (clusters - 1) * np.sum(influence**2)))


def _estimate(draws: Sequence[Draws], influence: Floats) -> dict[str, float | None]:
    """{value, low, high} of the mean change over tasks."""
    data = float(np.mean([each.data[1] - each.data[0] for each in draws]))
    drawn = np.mean([each.drawn[:, 1] - each.drawn[:, 0] for each in draws], axis=0)
    return estimate(data, drawn, influence, interval=all(each.interval for each in draws))


def _influence(drawn: Draws) -> Floats:
    """Each image's influence [C] on the task's change, in points."""
    return np.asarray(drawn.influence[:, 1] - drawn.influence[:, 0])


def _check(tasks: Sequence[TaskScores]) -> None:
    if not tasks:
        raise DataError("no task to compare")
    for scores in tasks:
        if len(scores.values) != 2:
            raise DataError(
                f"task {scores.task}: a comparison needs two rows of scores, found {len(scores.values)}"
            )


def _seed(seed: int, *names: str) -> int:
    """A seed of its own for each test, the same in every run."""
    text = "/".join((str(seed), "swap", *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
