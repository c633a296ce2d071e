"""Answers survive the way to a file and back, and nothing else passes for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmm_forget.errors import StoreError
from lmm_forget.evaluation.answers import Answer, flips
from lmm_forget.evaluation.table import answers_to_table, read_answers, table_to_answers, write_answers

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
    gap=st.floats(0, 100),
)
ONE = Answer("t", "s", "i", "?", ("a",), "a", 1.0, None, None, None, 2, 0.5)


@given(answers=st.lists(ANSWERS, max_size=5))
def test_a_table_gives_back_the_same_answers(answers: list[Answer]) -> None:
    assert table_to_answers(answers_to_table(answers)) == answers


def test_a_file_gives_back_the_same_answers(tmp_path: Path) -> None:
    answers = [ONE, replace(ONE, sample_id="s2", tolerant=0.5, group="g", references=())]
    path = tmp_path / "deep" / "answers.parquet"
    write_answers(answers, path)
    write_answers(answers, path)
    assert read_answers(path) == answers
    assert [p.name for p in path.parent.iterdir()] == ["answers.parquet"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    write_answers([ONE], path)
    with pytest.raises(pa.ArrowException):
        write_answers([replace(ONE, tokens="many")], path)  # type: ignore[arg-type]
    assert read_answers(path) == [ONE]
    assert [p.name for p in tmp_path.iterdir()] == ["answers.parquet"]


def test_files_that_are_no_answers(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    with pytest.raises(StoreError, match=r"answers\.parquet is missing"):
        read_answers(path)
    write_answers([ONE] * 50, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=r"answers\.parquet cannot be read as a table of answers") as caught:
        read_answers(path)
    assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"task": ["t"]}), path)
    with pytest.raises(StoreError, match=r"answers\.parquet is not a table of answers of version 1 .*none"):
        read_answers(path)
    other = answers_to_table([ONE]).replace_schema_metadata({"lmm_forget.answers": "2"})
    with pytest.raises(StoreError, match="its version: 2"):
        table_to_answers(other)


def test_flips_excuse_near_ties_only() -> None:
    first = [replace(ONE, sample_id=str(i), gap=gap) for i, gap in enumerate([0.5, 1e-4, 0.5, 0.5])]
    second = [
        first[0],
        replace(first[1], text="b"),
        replace(first[2], text="b", gap=1e-4),
        replace(first[3], text="b"),
    ]
    found = flips(first, second)
    assert (found.total, found.near_ties, found.unexplained, found.count) == (4, 2, ("t/3",), 3)
    assert flips(first, first).count == 0
    with pytest.raises(ValueError, match="t/0 and t/1 cannot be compared"):
        flips(first, first[1:] + first[:1])
    with pytest.raises(ValueError):
        flips(first, first[:2])
