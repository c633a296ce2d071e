"""The figures of merit against numbers worked out by hand, and the properties they must have."""

from __future__ import annotations

import copy
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_forget.errors import DataError
from lmm_forget.metrics import TaskScores, compute_figures_from_answers, compute_figures_of_merit

NOTHING = {"value": None, "low": None, "high": None}


def scores_of(task: str, right: list[int], n: int = 10, groups: list[str] | None = None) -> TaskScores:
    """A task of n samples (one image each) of which `right[s]` are right after stage s."""
    values = np.array([[1.0] * count + [0.0] * (n - count) for count in right])
    return TaskScores(task, values, [f"{task}-{i}" for i in range(n)], groups)


def hand_made() -> tuple[list[str], list[str], dict[str, TaskScores]]:
    """Three skills, two benchmarks of ten questions; columns are base and stages 1 to 3."""
    right = {"a": [1, 6, 4, 3], "b": [2, 2, 9, 5], "c": [0, 1, 1, 8], "x": [9, 8, 4, 6], "y": [10, 10, 7, 9]}
    return ["a", "b", "c"], ["x", "y"], {task: scores_of(task, row) for task, row in right.items()}


def test_hand_computed_values() -> None:
    result = compute_figures_of_merit(*hand_made())
    assert result["target_learning"]["value"] == pytest.approx((50 + 70 + 80) / 3)
    assert result["target_forgetting"]["value"] == pytest.approx(((30 - 60) + (50 - 90)) / 2)
    assert result["target_overall"]["value"] == pytest.approx((20 + 30 + 80) / 3)
    heldout = result["heldout_forgetting"]
    assert [stage["value"] for stage in heldout["per_stage"]] == pytest.approx([-5, -40, -20])
    assert heldout["value"] == pytest.approx(-20)
    assert (heldout["worst"]["value"], heldout["worst"]["stage"]) == (pytest.approx(-40), 2)
    assert heldout["recovery"]["value"] == pytest.approx(20)
    assert heldout["sum"]["value"] == pytest.approx(-40)


def test_layout_is_the_documented_one_and_goes_into_json() -> None:
    result = json.loads(json.dumps(compute_figures_of_merit(*hand_made()), allow_nan=False))
    estimate = {"value", "low", "high"}
    assert set(result) == {"target_learning", "target_forgetting", "target_overall", "heldout_forgetting"}
    heldout = result.pop("heldout_forgetting")
    assert set(heldout) == estimate | {"per_stage", "worst", "recovery", "sum"}
    assert set(heldout["worst"]) == estimate | {"stage"}
    for figure in [*result.values(), *heldout["per_stage"], heldout["recovery"], heldout["sum"]]:
        assert set(figure) == estimate
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert {key: heldout[key] for key in estimate} == heldout["per_stage"][-1]


def test_a_task_taught_twice_counts_from_its_last_teaching() -> None:
    scores = {"a": scores_of("a", [0, 8, 2, 9]), "b": scores_of("b", [0, 0, 7, 4])}
    result = compute_figures_of_merit(["a", "b", "a"], [], scores)
    assert result["target_forgetting"]["value"] == pytest.approx(-30)  # b alone: a was taught at the last stage
    assert result["target_learning"]["value"] == pytest.approx((80 + 70 + 90) / 3)  # each teaching counts
    assert result["target_overall"]["value"] == pytest.approx((90 + 40) / 2)  # each task counts once
    again = compute_figures_of_merit(
        ["a", "a", "b"], [], {"a": scores_of("a", [0, 8, 6, 5]), "b": scores_of("b", [0, 0, 0, 4])}
    )
    assert again["target_forgetting"]["value"] == pytest.approx(-10)


def test_forgetting_does_not_exist_with_one_stage_or_one_task() -> None:
    one = compute_figures_of_merit(["a"], ["x"], {"a": scores_of("a", [0, 5]), "x": scores_of("x", [9, 8])})
    assert one["target_forgetting"] == NOTHING
    assert one["target_learning"]["value"] == one["target_overall"]["value"] == pytest.approx(50)
    assert one["heldout_forgetting"]["recovery"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert compute_figures_of_merit(["a", "a"], [], {"a": scores_of("a", [0, 5, 6])})["target_forgetting"] == NOTHING


def test_no_suite_means_no_heldout_figure() -> None:
    heldout = compute_figures_of_merit(["a"], [], {"a": scores_of("a", [0, 5])})["heldout_forgetting"]
    assert {key: heldout[key] for key in NOTHING} == NOTHING
    assert heldout["per_stage"] == [NOTHING]
    assert heldout["worst"] == NOTHING | {"stage": None}
    assert heldout["sum"] == heldout["recovery"] == NOTHING


def test_one_image_gives_a_value_without_an_interval() -> None:
    single = TaskScores("x", np.array([[1.0, 1.0], [0.0, 1.0]]), ["same", "same"])
    heldout = compute_figures_of_merit(["a"], ["x"], {"a": scores_of("a", [0, 5]), "x": single})["heldout_forgetting"]
    assert (heldout["value"], heldout["low"], heldout["high"]) == (-50.0, None, None)


def test_macro_task_is_the_mean_of_group_means() -> None:
    # group p: 8 samples, 8 then 4 right; group q: 2 samples, 0 then 2 right
    values = np.array([[1.0] * 8 + [0.0] * 2, [1.0] * 4 + [0.0] * 4 + [1.0] * 2])
    macro = TaskScores("a", values, [str(i) for i in range(10)], ["p"] * 8 + ["q"] * 2)
    assert compute_figures_of_merit(["a"], [], {"a": macro})["target_learning"]["value"] == pytest.approx(75 - 50)
    plain = TaskScores("a", values, [str(i) for i in range(10)])
    assert compute_figures_of_merit(["a"], [], {"a": plain})["target_learning"]["value"] == pytest.approx(60 - 80)


def test_a_group_missing_from_a_resample_is_dropped_from_it() -> None:
    # two images, one group each: a resample holds both (mean 50), only p (0) or only q (100), never a NaN
    macro = TaskScores("a", np.array([[0.0, 0.0], [0.0, 1.0]]), ["i", "j"], ["p", "q"])
    learning = compute_figures_of_merit(["a"], [], {"a": macro})["target_learning"]
    assert learning == {"value": 50.0, "low": 0.0, "high": 100.0}


def test_stages_are_paired() -> None:
    """Every image loses exactly one of its two right answers, so no resample can change the difference."""
    base, after = [1.0, 1.0, 0.0] * 20, [1.0, 0.0, 0.0] * 20
    task = TaskScores("x", np.array([base, after]), [str(i // 3) for i in range(60)])
    heldout = compute_figures_of_merit(["a"], ["x"], {"a": scores_of("a", [0, 5]), "x": task})["heldout_forgetting"]
    assert heldout["low"] == pytest.approx(heldout["high"]) == pytest.approx(-100 / 3)


def test_worst_stage_is_chosen_anew_in_each_resample() -> None:
    """Two stages that lose different halves of the questions: whichever half is drawn more is the worst."""
    n = 40
    values = np.ones((3, n))
    values[1, : n // 2] = 0.0
    values[2, n // 2 :] = 0.0
    task = TaskScores("x", values, [str(i) for i in range(n)])
    target = TaskScores("a", np.zeros((3, 2)), ["i", "j"])
    heldout = compute_figures_of_merit(["a", "a"], ["x"], {"a": target, "x": task})["heldout_forgetting"]
    assert heldout["per_stage"][0]["high"] > -45 and heldout["per_stage"][1]["high"] > -45
    assert heldout["worst"]["value"] == -50.0
    assert heldout["worst"]["high"] == -50.0  # the smaller of h and 1 - h is never above one half
    assert heldout["recovery"]["value"] == 0.0 and heldout["recovery"]["low"] == 0.0


def test_interval_agrees_with_the_normal_approximation() -> None:
    rng = np.random.default_rng(3)
    values = np.stack([np.ones(400), (rng.random(400) < 0.7).astype(float)])
    task = TaskScores("a", values, [str(i) for i in range(400)])
    learning = compute_figures_of_merit(["a"], [], {"a": task}, num_resamples=4000)["target_learning"]
    p = values[1].mean()
    half = 196 * np.sqrt(p * (1 - p) / 400)
    assert learning["low"] == pytest.approx(learning["value"] - half, abs=0.6)
    assert learning["high"] == pytest.approx(learning["value"] + half, abs=0.6)


def test_level_and_seed() -> None:
    arguments = hand_made()
    wide, narrow = (
        compute_figures_of_merit(*arguments, confidence_level=0.99),
        compute_figures_of_merit(*arguments, confidence_level=0.5),
    )
    assert wide["target_overall"]["low"] < narrow["target_overall"]["low"]
    one, same, other = (compute_figures_of_merit(*arguments, num_resamples=40, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert other["target_overall"]["value"] == one["target_overall"]["value"]
    assert other != one


@pytest.mark.parametrize(
    ("taught", "suite", "words"),
    [
        ([], ["x"], "no stage was trained"),
        (["a", "b", "c"], ["nowhere"], "task nowhere has no scores (there are scores of: a, b, c, x, y)"),
        (["a", "b"], ["x"], "task a has scores of 3 stages besides the base, expected 2"),
        (["a", "b", "c"], ["x", "a"], "task a is a target and in the held-out suite"),
    ],
)
def test_wrong_input_is_one_clear_line(taught: list[str], suite: list[str], words: str) -> None:
    with pytest.raises(DataError) as caught:
        compute_figures_of_merit(taught, suite, hand_made()[2])
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "clusters", "words"),
    [
        ([[0.0, 1.5]], ["i", "j"], "1.5"),
        ([[0.0, float("nan")]], ["i", "j"], "nan"),
        ([[0.0, 1.0]], ["i"], "1 clusters for 2 samples"),
        ([[]], [], "shape (1, 0)"),
        ([0.0, 1.0], ["i", "j"], "shape (2,)"),
    ],
)
def test_scores_that_cannot_be_used(values: list, clusters: list[str], words: str) -> None:
    with pytest.raises(DataError, match="task a") as caught:
        TaskScores("a", np.array(values), clusters)
    assert words in str(caught.value)


@pytest.mark.parametrize("settings_", [{"num_resamples": 0}, {"confidence_level": 1.0}, {"confidence_level": 0.0}])
def test_settings_that_give_no_interval(settings_: dict) -> None:
    with pytest.raises(DataError, match="expected"):
        compute_figures_of_merit(*hand_made(), **settings_)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[str], list[str], dict[str, TaskScores]]:
    """Any run: 1 to 4 stages, up to three skills and benchmarks, shared images, partial scores, groups."""
    taught = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4))
    suite = draw(st.lists(st.sampled_from(["x", "y", "z"]), max_size=3, unique=True))
    scores = {}
    for task in (*dict.fromkeys(taught), *suite):
        n = draw(st.integers(1, 8))
        cells = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=n, max_size=n)
        values = np.array([draw(cells) for _ in range(len(taught) + 1)])
        clusters = draw(st.lists(st.sampled_from("ijkl"), min_size=n, max_size=n))
        groups = draw(st.none() | st.lists(st.sampled_from("pq"), min_size=n, max_size=n))
        scores[task] = TaskScores(task, values, clusters, groups)
    return taught, suite, scores


@settings(max_examples=60, deadline=None)
@given(runs(), st.randoms(use_true_random=False))
def test_order_of_samples_and_of_benchmarks_changes_nothing(run: tuple, random: object) -> None:
    taught, suite, scores = run
    shuffled = {}
    for task, score in scores.items():
        order = list(range(score.values.shape[1]))
        random.shuffle(order)  # type: ignore[attr-defined]
        groups = None if score.groups is None else np.asarray(score.groups)[order]
        shuffled[task] = TaskScores(task, score.values[:, order], np.asarray(score.clusters)[order], groups)
    one = compute_figures_of_merit(taught, suite, scores, num_resamples=50)
    two = compute_figures_of_merit(taught, suite[::-1], shuffled, num_resamples=50)
    assert json.dumps(one) == json.dumps(two)


@settings(max_examples=40, deadline=None)
@given(runs())
def test_input_is_not_changed_and_figures_are_in_range(run: tuple) -> None:
    taught, suite, scores = run
    before = copy.deepcopy({task: (score.values, score.clusters, score.groups) for task, score in scores.items()})
    result = compute_figures_of_merit(taught, suite, scores, num_resamples=50)
    for task, (values, clusters, groups) in before.items():
        np.testing.assert_array_equal(values, scores[task].values)
        np.testing.assert_array_equal(clusters, scores[task].clusters)
        assert (groups is None) == (scores[task].groups is None)
    assert (result["target_forgetting"]["value"] is None) == (len(set(taught)) == 1)
    heldout = result["heldout_forgetting"]
    assert (heldout["value"] is None) == (not suite)
    if suite:
        assert heldout["recovery"]["value"] >= 0
        assert heldout["worst"]["value"] == min(stage["value"] for stage in heldout["per_stage"])
        assert heldout["recovery"]["value"] == pytest.approx(heldout["value"] - heldout["worst"]["value"])
        assert heldout["sum"]["value"] == pytest.approx(len(suite) * heldout["value"])
    for figure in (result["target_learning"], result["target_overall"]):
        assert -100 <= figure["value"] <= 100
        assert (figure["low"] is None) == (figure["high"] is None)


def test_the_array_handed_in_stays_the_callers() -> None:
    values = np.array([[0.0, 1.0], [1.0, 1.0]])
    task = TaskScores("a", values, ["i", "j"])
    values[:] = 0.5
    assert compute_figures_of_merit(["a"], [], {"a": task})["target_learning"]["value"] == 50.0


def test_figures_from_answers_in_any_order() -> None:
    taught, suite, scores = hand_made()
    rng = np.random.default_rng(0)
    answers: dict[str, list[dict]] = {}
    for task, score in scores.items():
        answers[task] = []
        for row in score.values:
            order = rng.permutation(len(row))
            images = np.asarray(score.clusters)[order]
            answers[task].append({"sample_id": [f"s{i:02d}" for i in order], "image_id": images, "value": row[order]})
    assert compute_figures_from_answers(taught, suite, answers) == compute_figures_of_merit(taught, suite, scores)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"sample_id": ["1", "3"], "image_id": ["i", "j"], "value": [1, 0]}, "sample 2 was not answered"),
        ({"sample_id": ["1", "1"], "image_id": ["i", "j"], "value": [1, 0]}, "sample 1 was answered twice"),
        ({"sample_id": ["1", "2"], "image_id": ["i", "k"], "value": [1, 0]}, "sample 2 has another image"),
        ({"sample_id": ["1", "2"], "image_id": ["i"], "value": [1, 0]}, "differ in length"),
        ({"sample_id": ["1", "2"], "value": [1, 0]}, "no column image_id"),
        (
            {"sample_id": ["1", "2"], "image_id": ["i", "j"], "value": [1, 0], "group": ["p", None]},
            "another image or group",
        ),
    ],
)
def test_answers_that_do_not_match(columns: dict, words: str) -> None:
    base = {"sample_id": ["1", "2"], "image_id": ["i", "j"], "value": [1, 0]}
    with pytest.raises(DataError, match="task a.*" + words):
        compute_figures_from_answers(["a"], [], {"a": [base, columns]})


def test_the_size_of_a_real_run_is_quick() -> None:
    """A bound far above what it takes (0.1 s), to catch a loop over resamples."""
    rng = np.random.default_rng(0)
    names = [f"t{i}" for i in range(13)]
    scores = {
        name: TaskScores(name, (rng.random((6, 200)) < 0.5).astype(float), [str(i) for i in range(200)])
        for name in names
    }
    start = time.process_time()
    compute_figures_of_merit(names[:5], names[5:], scores, num_resamples=2000)
    assert time.process_time() - start < 3.0
