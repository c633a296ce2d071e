"""References of lettered options, and the formats of answers, in signs that are digits only by name."""

from __future__ import annotations

import pytest

from lmm_forget.data.inspection import detect_answer_format
from lmm_forget.errors import DataError
from lmm_forget.tasks.lettered_choices import parse_choice_letter


@pytest.mark.parametrize(("answer", "letter"), [("B", "B"), (" b ", "B"), ("1", "B"), ("\u0661", "B")])
def test_a_letter_or_a_position_is_a_reference(answer: str, letter: str) -> None:
    assert parse_choice_letter(answer, 4) == letter


@pytest.mark.parametrize("answer", ["\u00b2", "\u2460", "\u00bd", "E", "4", "-1", ""])
def test_what_is_neither_is_named(answer: str) -> None:
    with pytest.raises(DataError, match="is neither a letter nor a position among 4 options"):
        parse_choice_letter(answer, 4)


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("\u22125", "whole number"),
        ("\uff12", "whole number"),
        ("3\uff1a45", "time"),
        ("\u22123.5", "number"),
        ("5\u00b2", "one word"),
        ("\uff22", "letter"),
    ],
)
def test_formats_of_answers_are_those_of_the_folded_text(answer: str, name: str) -> None:
    assert detect_answer_format(answer) == name
