"""Answers of a model: appended in whole batches, shared by writers, and a damaged line is asked again."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmm_forget.store import CachedResponse, ResponseCache, Store, compute_question_key
from lmm_forget.store.response_cache import scan_response_file

ONE, TWO = (
    {"q1": CachedResponse("a\nb ü", 2, 0.1 + 0.2)},
    {"q2": CachedResponse("", 1, 1e-17), "q3": CachedResponse("3", 1, 7.25)},
)


def test_answers_come_back_exactly_whoever_wrote_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = ResponseCache(store, "m"), ResponseCache(store, "m")
    assert first.refresh() == {}
    first.append_batch(ONE)
    second.append_batch(TWO)
    assert first.refresh() == second.refresh() == ResponseCache(store, "m").refresh() == {**ONE, **TWO}
    assert ResponseCache(store, "other model").refresh() == {}
    assert len(list((tmp_path / "answers" / "m").iterdir())) == 2


def test_an_unfinished_line_is_left_for_later_and_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    notes: list[str] = []
    store = Store(tmp_path, notes.append)
    writer, reader = ResponseCache(store, "m"), ResponseCache(store, "m")
    writer.append_batch(ONE)
    (path,) = (tmp_path / "answers" / "m").iterdir()
    writer.append_batch(TWO)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # as a reader sees it while it is written, or after a kill
    assert reader.refresh() == ONE and notes == []
    assert scan_response_file(path)[:2] == (1, 0) and scan_response_file(path)[2] > 0
    path.write_bytes(whole)
    assert reader.refresh() == {**ONE, **TWO}
    at = whole.index(b"7.25")
    path.write_bytes(whole[:at] + b"8" + whole[at + 1 :])
    assert ResponseCache(store, "m").refresh() == ONE
    assert "a line is damaged and was left out" in notes[0]
    assert scan_response_file(path) == (1, 1, 0)
    path.write_bytes(b"\xff\xfe\n" + whole)
    assert ResponseCache(store, "m").refresh() == {**ONE, **TWO}


@pytest.mark.parametrize("other", [("Q", ["h"], 5), ("q", ["g"], 5), ("q", ["h", "h"], 5), ("q", ["h"], 6)])
def test_prompt_images_and_length_tell_questions_apart(other: tuple[str, list[str], int]) -> None:
    assert compute_question_key("q", ["h"], 5) == compute_question_key("q", ["h"], 5) != compute_question_key(*other)
