"""Comparisons of two models: by hand, against scipy and statsmodels on random cases, and how often intervals hold."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from lmm_forget.errors import DataError
from lmm_forget.metrics import (
    TaskScores,
    apply_holm_correction,
    compare_mean_scores,
    compare_task_scores,
    compute_detectable_change,
    compute_swap_test_p_value,
    run_mcnemar_test,
)


def pair(before: list[float], after: list[float], images: list[str] | None = None, **more: object) -> TaskScores:
    labels = images or [str(i) for i in range(len(before))]
    return TaskScores("task", np.array([before, after], dtype=float), labels, **more)  # type: ignore[arg-type]


def test_by_hand() -> None:
    # four images of two questions: the first loses both, the second one, the third gains one, the last keeps both
    before, after = [1, 1, 1, 1, 0, 1, 1, 0], [0, 0, 1, 0, 1, 1, 1, 0]
    found = compare_task_scores(pair(before, after, list("aabbccdd")))
    assert (found["n"], found["images"], found["gained"], found["lost"]) == (8, 4, 1, 3)
    assert (found["before"], found["after"], found["value"]) == (75.0, 50.0, -25.0)
    # images moved by -2, -1, +1 of 8 questions; |±2 ±1 ±1| >= 2 in 6 of 8 swaps
    assert found["p_value"] == pytest.approx(6 / 8)
    # around the mean of -1/2 an image, the four deviate by -1.5, -.5, 1.5, .5: 5 in squares, times 4/3, over 8
    assert found["stderr"] == pytest.approx(100 * np.sqrt(4 / 3 * 5) / 8)
    assert -100.0 <= found["low"] < -25.0 < found["high"] <= 50.0  # every image the first, every image the third
    assert found["mcnemar"] == run_mcnemar_test(before, after) and found["mcnemar"]["p_value"] == pytest.approx(10 / 16)


def test_nothing_changed() -> None:
    found = compare_task_scores(pair([1, 0, 1], [1, 0, 1]))
    assert (found["value"], found["low"], found["high"], found["p_value"]) == (0.0, 0.0, 0.0, 1.0)
    assert found["resolvable"] == pytest.approx(200.0)  # three questions can show nothing


def test_one_image_has_a_value_and_no_interval() -> None:
    found = compare_task_scores(pair([1, 1], [0, 1], ["a", "a"]))
    assert found["value"] == -50.0 and found["low"] is None and found["resolvable"] is None


def test_groups_weigh_the_same_whatever_their_size() -> None:
    groups = ["x", "x", "x", "y"]
    found = compare_task_scores(pair([1, 1, 1, 1], [1, 1, 0, 0], groups=groups))
    assert found["value"] == pytest.approx(-100 * (1 / 3 + 1) / 2)


def test_mean_of_tasks_is_the_mean_of_their_changes() -> None:
    rng = np.random.default_rng(3)
    tasks = [
        TaskScores(name, (rng.random((2, 60)) < 0.6).astype(float), [str(i // 3) for i in range(60)])
        for name in ("one", "two")
    ]
    found, each = compare_mean_scores(tasks), [compare_task_scores(task) for task in tasks]
    assert found["value"] == pytest.approx(np.mean([one["value"] for one in each]))
    assert found["stderr"] == pytest.approx(np.hypot(*[one["stderr"] for one in each]) / 2)
    assert found["low"] < found["value"] < found["high"]
    assert found["high"] - found["low"] < min(one["high"] - one["low"] for one in each)


def test_a_comparison_needs_two_rows() -> None:
    with pytest.raises(DataError, match="needs two rows of scores, found 3"):
        compare_task_scores(TaskScores("task", np.zeros((3, 4)), list("abcd")))
    with pytest.raises(DataError, match="no task to compare"):
        compare_mean_scores([])


def test_thousand_random_cases_agree_with_scipy_and_statsmodels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", lambda: 0)  # statsmodels empties the whole process at every call
    rng = np.random.default_rng(11)
    for case in range(1000):
        n = int(rng.integers(5, 200))
        before = (rng.random(n) < rng.random()).astype(float)
        after = np.where(rng.random(n) < rng.random(), before, (rng.random(n) < 0.5).astype(float))
        table = [[np.sum((before == i) & (after == j)) for j in (0, 1)] for i in (0, 1)]
        changed = int(table[0][1] + table[1][0])
        ours = run_mcnemar_test(before, after)
        assert (ours["gained"], ours["lost"]) == (table[0][1], table[1][0])
        exact = reference_mcnemar(table, exact=True).pvalue if changed else 1.0
        if ours["method"] == "exact":
            assert ours["p_value"] == pytest.approx(exact, rel=1e-9), case
        else:
            chi2 = reference_mcnemar(table, exact=False, correction=True)
            # without a difference the corrected statistic is cut at zero here, as it should be
            assert ours["p_value"] == pytest.approx(chi2.pvalue if table[0][1] != table[1][0] else 1.0), case
        # a question per image: the swap test is McNemar's exact test, by any of its three ways
        assert compute_swap_test_p_value(after - before) == pytest.approx(exact, rel=1e-9, abs=1e-12), case
        p_values = list(rng.random(int(rng.integers(1, 14))) ** rng.integers(1, 5))
        assert apply_holm_correction(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1])), case


def test_swap_test_of_partial_scores_agrees_with_every_permutation() -> None:
    rng = np.random.default_rng(5)
    for case in range(100):
        changes = rng.normal(0.3, 1, size=int(rng.integers(2, 9)))
        signs = np.array(list(itertools.product((-1, 1), repeat=len(changes))))
        every = np.mean(np.abs(signs @ changes) >= abs(changes.sum()) - 1e-12)
        assert compute_swap_test_p_value(changes) == pytest.approx(every), case
    # sampled where there are too many: as scipy's permutation test samples them
    changes = rng.normal(0.25, 1, size=40)
    theirs = stats.permutation_test(
        (changes, np.zeros(40)),
        lambda x, y: np.sum(x - y),
        permutation_type="samples",
        n_resamples=20_000,
        rng=1,
    ).pvalue
    assert compute_swap_test_p_value(changes) == pytest.approx(theirs, abs=0.015)


def test_whole_steps_are_counted_like_every_permutation() -> None:
    rng = np.random.default_rng(6)
    for case in range(200):
        changes = rng.integers(-4, 5, size=int(rng.integers(1, 12))) / 7
        signs = np.array(list(itertools.product((-1, 1), repeat=len(changes))))
        every = np.mean(np.abs(signs @ changes) >= abs(changes.sum()) - 1e-9)
        assert compute_swap_test_p_value(changes) == pytest.approx(every), case


def test_intervals_agree_with_scipy_where_every_question_has_its_image() -> None:
    rng = np.random.default_rng(8)
    for _ in range(40):
        before = (rng.random(150) < 0.7).astype(float)
        after = np.where(rng.random(150) < 0.75, before, 1 - before)
        ours = compare_task_scores(pair(list(before), list(after)))
        theirs = stats.bootstrap(
            (100 * (after - before),), np.mean, method="BCa", n_resamples=2000, rng=2
        ).confidence_interval
        assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), abs=1.4)


def test_resolvable_is_what_80_percent_of_samples_show() -> None:
    rng = np.random.default_rng(9)
    n, lost, gained = 400, 0.08, 0.03
    stderr = 100 * np.sqrt((lost + gained - (gained - lost) ** 2) / n)
    need = compute_detectable_change(stderr, n) / 100
    found = []
    for _ in range(400):
        luck = rng.random(n)
        down = (lost + gained + need) / 2  # the same share of changed answers, tilted by the resolvable change
        change = np.where(luck < down, -1.0, np.where(luck < lost + gained, 1.0, 0.0))
        found.append(compute_swap_test_p_value(change) < 0.05)
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)
    assert compute_detectable_change(0.0, 200) == 3.0  # six of two hundred


def clustered(rng: np.random.Generator, images: int, questions: int, change: float) -> tuple[np.ndarray, ...]:
    """Right/wrong scores of two models; an image's questions fall together, the second model by `change` on average."""
    easy = rng.beta(4, 2, size=images)
    down = rng.beta(0.2, 0.2 * (1 - change) / change, size=images)  # an image is forgotten or kept as a whole
    before = rng.random((images, questions)) < easy[:, None]
    kept = rng.random((images, questions)) >= down[:, None]
    return (
        before.ravel().astype(float),
        (before & kept).ravel().astype(float),
        np.repeat(np.arange(images), questions),
    )


def test_intervals_hold_where_questions_share_images() -> None:
    truth = -100 * 4 / 6 * 0.15
    rng = np.random.default_rng(13)
    draws = 200
    held = {"clustered": 0, "unclustered": 0}
    for _ in range(draws):
        before, after, images = clustered(rng, 120, 8, 0.15)
        for name, labels in (("clustered", images), ("unclustered", np.arange(len(images)))):
            found = compare_task_scores(TaskScores("task", np.stack([before, after]), labels), num_resamples=400)
            held[name] += bool(found["low"] <= truth <= found["high"])
    assert held["clustered"] / draws > 0.91
    assert held["unclustered"] / draws < 0.8
