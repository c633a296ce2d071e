"""Metrics that accumulate equal the plain mean of the pure scores, however the answers were batched."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_forget.errors import DataError
from lmm_forget.evaluation.aggregation import (
    MacroAccuracy,
    MeanANLS,
    MeanRelaxedAccuracy,
    MeanScore,
    MeanVQAAccuracy,
)
from lmm_forget.tasks.scoring.text_match import compute_anls, is_relaxed_match
from lmm_forget.tasks.scoring.vqa import compute_vqa_accuracy

ANSWERS = ["blue", "blum", "105", "5 %", "", "two"]
REFERENCES = [["blue"], ["blue", "plum"], ["100"], ["0.05"], ["x"], ["2", "2", "two", "3"]]
METRICS: list[tuple[MeanScore, Callable[[str, Sequence[str]], float]]] = [
    (MeanANLS(), compute_anls),
    (MeanANLS(threshold=0.9), lambda a, r: compute_anls(a, r, 0.9)),
    (MeanVQAAccuracy(), compute_vqa_accuracy),
    (MeanRelaxedAccuracy(), lambda a, r: float(any(is_relaxed_match(a, one) for one in r))),
    (MeanRelaxedAccuracy(tolerance=0.0), lambda a, r: float(any(is_relaxed_match(a, one, 0.0) for one in r))),
]


@pytest.mark.parametrize(("metric", "pure"), METRICS)
def test_the_metric_is_the_mean_of_the_pure_score(
    metric: MeanScore, pure: Callable[[str, Sequence[str]], float]
) -> None:
    expected = sum(map(pure, ANSWERS, REFERENCES)) / len(ANSWERS)
    assert 0 < expected < 1
    metric.reset()
    metric.update(ANSWERS[:2], REFERENCES[:2])
    metric.update(ANSWERS[2:], REFERENCES[2:])
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-12)
    other = pickle.loads(pickle.dumps(metric))
    other.reset()
    other.update(ANSWERS, REFERENCES)
    other.merge_state(metric)  # as two ranks would be joined
    assert float(other.compute()) == pytest.approx(expected, abs=1e-12)


def test_there_is_no_mean_of_nothing() -> None:
    for metric in (MeanANLS(), MacroAccuracy()):
        with pytest.raises(DataError, match="no answer yet"), pytest.warns(UserWarning, match="before the"):
            metric.compute()


def test_macro_accuracy_gives_every_group_the_same_weight() -> None:
    metric = MacroAccuracy()
    metric.update([1, 1, 1, 0], ["geometry"] * 4)
    metric.update([0], ["recognition"])
    assert float(metric.compute()) == pytest.approx(0.375)
    with pytest.raises(ValueError, match="1 scores, but 2 groups"):
        metric.update([1.0], ["a", "b"])


ROWS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcd")), min_size=1, max_size=30)


@settings(max_examples=30)
@given(rows=ROWS, cut=st.integers(0, 30))
def test_macro_accuracy_does_not_depend_on_the_batches(rows: list[tuple[float, str]], cut: int) -> None:
    whole, first, second = MacroAccuracy(), MacroAccuracy(), MacroAccuracy()
    for metric, part in ((whole, rows), (first, rows[:cut]), (second, rows[cut:])):
        metric.update([score for score, _ in part], [group for _, group in part])
    first.merge_state(second)
    by_group = {g: [s for s, group in rows if group == g] for _, g in rows}
    expected = sum(sum(s) / len(s) for s in by_group.values()) / len(by_group)
    assert float(whole.compute()) == pytest.approx(expected)
    assert float(first.compute()) == pytest.approx(expected)
