"""One interval everywhere: results.json, comparisons and stages say the same of the same change."""

from __future__ import annotations

import numpy as np
import pytest

from lmm_forget.metrics import (
    TaskScores,
    compare_mean_scores,
    compare_task_scores,
    compute_figures_of_merit,
    estimate_changes_from_base,
    estimate_paired_change,
)
from lmm_forget.metrics.intervals import compute_bca_interval, estimate_with_interval


def two_benchmarks() -> dict[str, TaskScores]:
    rng = np.random.default_rng(4)
    return {
        name: TaskScores(
            name,
            np.stack([np.ones(90), *((rng.random((2, 90)) < 0.8).astype(float))]),
            [str(i // 3) for i in range(90)],
            groups,
        )
        for name, groups in (("x", None), ("y", ["p", "q"] * 45))
    }


def ends(found: dict) -> tuple[float, float, float]:
    return found["value"], found["low"], found["high"]


def test_figures_stages_and_comparisons_agree() -> None:
    scores = two_benchmarks()
    target = TaskScores("a", np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]), ["i", "j", "k"])
    heldout = compute_figures_of_merit(["a", "a"], list(scores), {"a": target, **scores})["heldout_forgetting"]
    for stage in (1, 2):
        pairs = [TaskScores(t, each.values[[0, stage]], each.clusters, each.groups) for t, each in scores.items()]
        assert ends(heldout["per_stage"][stage - 1]) == ends(compare_mean_scores(pairs))
        for (task, each), pair in zip(scores.items(), pairs, strict=True):
            assert ends(compare_task_scores(pair)) == ends(estimate_paired_change(each, 0, stage)), task
            assert estimate_changes_from_base(each)[stage - 1] == estimate_paired_change(each, 0, stage)
    worst = min(heldout["per_stage"], key=lambda entry: entry["value"])
    assert heldout["worst"]["value"] == worst["value"] and heldout["worst"]["low"] <= worst["value"]
    assert heldout["sum"]["low"] == pytest.approx(2 * heldout["low"])


def test_a_task_taught_twice_counts_its_images_once() -> None:
    """Learning twice on the same images is one change of these images, not two independent ones."""
    rng = np.random.default_rng(7)
    once = (rng.random(40) < 0.3).astype(float)
    values = np.stack([np.zeros(40), once, once])
    images = [str(i) for i in range(40)]
    twice = compute_figures_of_merit(["a", "a"], [], {"a": TaskScores("a", values, images)})["target_learning"]
    single = compute_figures_of_merit(["a"], [], {"a": TaskScores("a", values[:2], images)})["target_learning"]
    assert ends(twice) == pytest.approx(ends(single))


def test_a_skewed_change_reaches_further_to_its_long_side() -> None:
    """Few images lost, all at once: plain percentiles stop short of where the change may well lie."""
    rng = np.random.default_rng(1)
    change = -100 * rng.beta(0.2, 1.1, size=60)
    drawn = rng.choice(change, size=(4000, 60)).mean(axis=1)
    low, high = compute_bca_interval(change.mean(), drawn, (change - change.mean()) / 60)
    plain = estimate_with_interval(change.mean(), drawn, None)
    assert low < plain["low"] - 0.5 and high < plain["high"] and low < change.mean() < high


def test_nothing_to_resample_is_a_point_or_nothing() -> None:
    assert compute_bca_interval(3.0, np.full(50, 3.0), np.zeros(9)) == (3.0, 3.0)
    assert compute_bca_interval(3.0, np.array([1.0, 5.0]), np.zeros(1)) == (3.0, 3.0)
    # without an influence to tell skewness from, the draws alone speak
    assert compute_bca_interval(0.0, np.array([-1.0] * 50 + [1.0] * 50), np.zeros(9)) == (-1.0, 1.0)
    assert estimate_with_interval(1.0, np.array([0.0, 2.0]), None, has_interval=False) == {
        "value": 1.0,
        "low": None,
        "high": None,
    }
