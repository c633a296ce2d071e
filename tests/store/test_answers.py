"""Answers of a model: appended in whole batches, shared by writers, and a damaged line is asked again."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmm_forget.store import Kept, Said, Store, question_key
from lmm_forget.store.answers import scan

ONE, TWO = {"q1": Kept("a\nb ü", 2, 0.1 + 0.2)}, {"q2": Kept("", 1, 1e-17), "q3": Kept("3", 1, 7.25)}


def test_answers_come_back_exactly_whoever_wrote_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = Said(store, "m"), Said(store, "m")
    assert first.refresh() == {}
    first.add(ONE)
    second.add(TWO)
    assert first.refresh() == second.refresh() == Said(store, "m").refresh() == {**ONE, **TWO}
    assert Said(store, "other model").refresh() == {}
    assert len(list((tmp_path / "answers" / "m").iterdir())) == 2


def test_an_unfinished_line_is_left_for_later_and_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    notes: list[str] = []
    store = Store(tmp_path, notes.append)
    writer, reader = Said(store, "m"), Said(store, "m")
    writer.add(ONE)
    (path,) = (tmp_path / "answers" / "m").iterdir()
    writer.add(TWO)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # as a reader sees it while it is written, or after a kill
    assert reader.refresh() == ONE and notes == []
    assert scan(path)[:2] == (1, 0) and scan(path)[2] > 0
    path.write_bytes(whole)
    assert reader.refresh() == {**ONE, **TWO}
    at = whole.index(b"7.25")
    path.write_bytes(whole[:at] + b"8" + whole[at + 1 :])
    assert Said(store, "m").refresh() == ONE
    assert "a line is damaged and was left out" in notes[0]
    assert scan(path) == (1, 1, 0)
    path.write_bytes(b"\xff\xfe\n" + whole)
    assert Said(store, "m").refresh() == {**ONE, **TWO}


@pytest.mark.parametrize("other", [("Q", ["h"], 5), ("q", ["g"], 5), ("q", ["h", "h"], 5), ("q", ["h"], 6)])
def test_prompt_images_and_length_tell_questions_apart(other: tuple[str, list[str], int]) -> None:
    assert question_key("q", ["h"], 5) == question_key("q", ["h"], 5) != question_key(*other)
