"""Answers survive the way to a file and back, and nothing else passes for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmm_forget.evaluation.answer_table import make_answer_table
from lmm_forget.evaluation.scored_answers import Answer
from lmm_forget.store.record_schemas import ANSWERS_SCHEMA
from tests.evaluation.flips import flips

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCORE = st.floats(0, 1)
ANSWERS = st.builds(
    Answer,
    task=TEXT,
    sample_id=TEXT,
    image_id=TEXT,
    question=TEXT,
    references=st.lists(TEXT, max_size=3).map(tuple),
    text=TEXT,
    value=SCORE,
    tolerant=st.none() | SCORE,
    compat=st.none() | SCORE,
    group=st.none() | TEXT,
    tokens=st.integers(0, 2**31 - 1),
    logit_margin=st.floats(0, 100),
)
ONE = Answer("t", "s", "i", "?", ("a",), "a", 1.0, None, None, None, 2, 0.5)


@given(answers=st.lists(ANSWERS, max_size=5))
def test_a_table_holds_the_same_answers(answers: list[Answer]) -> None:
    table = make_answer_table(answers)
    rows = [Answer(**{**row, "references": tuple(row["references"])}) for row in table.to_pylist()]
    assert rows == answers
    assert table.schema.metadata == {b"lmm_forget.answers": ANSWERS_SCHEMA}  # which the report's reader checks


def test_flips_excuse_near_ties_only() -> None:
    first = [replace(ONE, sample_id=str(i), logit_margin=gap) for i, gap in enumerate([0.5, 1e-4, 0.5, 0.5])]
    second = [
        first[0],
        replace(first[1], text="b"),
        replace(first[2], text="b", logit_margin=1e-4),
        replace(first[3], text="b"),
    ]
    found = flips(first, second)
    assert (found.total, found.near_ties, found.unexplained, found.count) == (4, 2, ("t/3",), 3)
    assert flips(first, first).count == 0
    with pytest.raises(ValueError, match="t/0 and t/1 cannot be compared"):
        flips(first, first[1:] + first[:1])
    with pytest.raises(ValueError):
        flips(first, first[:2])
