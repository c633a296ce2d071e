"""Do the intervals hold what they promise? Simulated data with several questions about each image."""

from __future__ import annotations

import numpy as np
import pytest

from lmm_forget.errors import DataError
from lmm_forget.metrics import TaskScores, build_score_entry, compute_figures_of_merit, summarize_task_scores
from lmm_forget.metrics.bootstrap import ClusterSums, draw_cluster_weights, sum_by_cluster

IMAGES, QUESTIONS = 60, 5
TRUTH = -15.0  # base 0.9 right, 0.75 after; the questions about one image mostly share their fate


def simulated(rng: np.random.Generator) -> np.ndarray:
    """[2, IMAGES * QUESTIONS] right/wrong; an image's questions agree with probability 0.9."""
    rows = []
    for p in (0.9, 0.75):
        shared = np.repeat(rng.random(IMAGES) < p, QUESTIONS)
        own = rng.random(IMAGES * QUESTIONS) < p
        rows.append(np.where(rng.random(IMAGES * QUESTIONS) < 0.9, shared, own).astype(float))
    return np.array(rows)


def covered(clusters: list[str], runs: int = 200) -> float:
    """Share of simulated runs whose interval of held-out forgetting holds the truth."""
    rng = np.random.default_rng(20)
    target = TaskScores("a", np.zeros((2, 2)), ["i", "j"])
    hits = 0
    for run in range(runs):
        scores = {"a": target, "x": TaskScores("x", simulated(rng), clusters)}
        heldout = compute_figures_of_merit(["a"], ["x"], scores, num_resamples=300, seed=run)["heldout_forgetting"]
        hits += heldout["low"] <= TRUTH <= heldout["high"]
    return hits / runs


def test_clustered_interval_covers_and_the_unclustered_one_does_not() -> None:
    images = [str(i // QUESTIONS) for i in range(IMAGES * QUESTIONS)]
    assert 0.90 <= covered(images) <= 0.99
    assert covered([str(i) for i in range(IMAGES * QUESTIONS)]) < 0.80


def test_weights_are_multinomial() -> None:
    weights = np.concatenate(list(draw_cluster_weights(np.random.default_rng(0), 3000, 7)))
    assert weights.shape == (3000, 7)
    assert set(weights.sum(axis=1)) == {7.0}
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.06)
    np.testing.assert_allclose(weights.var(axis=0), 6 / 7, atol=0.08)


def test_large_tasks_are_drawn_in_blocks() -> None:
    blocks = list(draw_cluster_weights(np.random.default_rng(0), 500, 20_000))
    assert len(blocks) > 1 and sum(len(block) for block in blocks) == 500
    assert all(block.size <= 1 << 22 for block in blocks)


def test_metric_under_weights_equals_the_metric_of_the_repeated_samples() -> None:
    rng = np.random.default_rng(1)
    clusters, groups = rng.choice(list("ijkl"), 30), rng.choice(list("pqr"), 30)
    values = rng.random((3, 30))
    sums: ClusterSums = sum_by_cluster(TaskScores("a", values, clusters, groups))
    weights = np.array([2.0, 0.0, 1.0, 1.0])
    repeated = np.concatenate(
        [np.flatnonzero(clusters == name).repeat(int(w)) for name, w in zip("ijkl", weights, strict=True)]
    )
    expected = [
        np.mean([row[repeated][groups[repeated] == g].mean() for g in "pqr" if (groups[repeated] == g).any()])
        for row in values
    ]
    np.testing.assert_allclose(sums.compute_metric(weights[None])[0], expected)


def test_summary_without_clusters_is_the_textbook_standard_error() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0]
    assert summarize_task_scores(values) == {
        "value": 60.0,
        "n": 5,
        "stderr": pytest.approx(100 * np.std(values, ddof=1) / np.sqrt(5)),
    }


def test_duplicated_questions_add_no_certainty() -> None:
    values = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.25])
    once = summarize_task_scores(values, list("abcdef"))
    tripled = summarize_task_scores(values.repeat(3), np.array(list("abcdef")).repeat(3))
    assert tripled["stderr"] == pytest.approx(once["stderr"])
    assert summarize_task_scores(values.repeat(3))["stderr"] < 0.7 * once["stderr"]


def test_summary_of_a_macro_task() -> None:
    # groups of 4 and 2 with means 0.75 and 0.5: variance = (var_p / 4 + var_q / 2) / 4 up to C / (C - 1)
    values, groups = [1.0, 1.0, 1.0, 0.0, 1.0, 0.0], list("ppppqq")
    summary = summarize_task_scores(values, None, groups)
    spread = (0.75 * 0.25 / 4 + 0.25 / 2) / 4
    assert summary["value"] == 62.5
    assert summary["stderr"] == pytest.approx(100 * np.sqrt(6 / 5 * spread))


def test_summary_agrees_with_the_bootstrap_on_clustered_data() -> None:
    values = simulated(np.random.default_rng(5))
    clusters = [str(i // QUESTIONS) for i in range(IMAGES * QUESTIONS)]
    sums = sum_by_cluster(TaskScores("x", values, clusters))
    drawn = np.concatenate(
        [sums.compute_metric(w) for w in draw_cluster_weights(np.random.default_rng(0), 4000, IMAGES)]
    )
    assert summarize_task_scores(values[1], clusters)["stderr"] == pytest.approx(100 * drawn[:, 1].std(), rel=0.06)


def test_one_image_has_no_standard_error() -> None:
    assert summarize_task_scores([1.0, 0.0], ["same", "same"]) == {"value": 50.0, "n": 2, "stderr": None}


def test_results_scores_hold_the_tolerant_score_where_it_is_defined() -> None:
    entry = build_score_entry([0.0, 1.0], ["i", "j"], tolerant_scores=[1.0, 1.0])
    assert (entry["value"], entry["tolerant"], entry["n"]) == (50.0, 100.0, 2)
    assert build_score_entry([0.0, 1.0], ["i", "j"], tolerant_scores=[1.0, None])["tolerant"] is None
    assert build_score_entry([0.0, 1.0], ["i", "j"])["tolerant"] is None


def test_results_scores_hold_the_compat_score_over_the_samples_that_have_one() -> None:
    images, compat = ["i", "j", "k"], [1.0, None, 0.0]
    strict = build_score_entry([0.0, 1.0, 1.0], images, compat_scores=compat)
    assert (strict["value"], strict["strict"], strict["compat"], strict["n"]) == (pytest.approx(200 / 3),) * 2 + (50, 3)
    public = build_score_entry([0.0, 1.0, 1.0], images, compat_scores=compat, score_kind="compat")
    assert (public["value"], public["strict"], public["compat"], public["n"]) == (50, strict["value"], 50, 2)
    assert public["stderr"] == pytest.approx(50.0)
    grouped = build_score_entry([0, 1, 1], images, ["a", "b", "a"], compat_scores=[1.0, 1.0, 0.0], score_kind="compat")
    assert grouped["value"] == 75.0
    assert build_score_entry([0.0], ["i"], compat_scores=[None])["compat"] is None
    with pytest.raises(DataError, match="no answer has a compat score"):
        build_score_entry([0.0], ["i"], compat_scores=[None], score_kind="compat")
