"""Find answers that changed from right to wrong, and the format of the new answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmm_forget.errors import DataError

ANSWER_FORMATS = ("number", "letter", "yes_no", "clock", "other")
_CLOCK = re.compile(r"\b\d{1,2}:\d{2}\b")
_LETTER = re.compile(r"\(?[A-Z]\)?[.):]?")
_YES_NO = re.compile(r"(yes|no)\b", re.IGNORECASE)
_NUMBER = re.compile(
    r"\d|\b(zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(thir|four|fif|six|seven|eigh|nine)teen"
    r"|(twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|million|billion)\b",
    re.IGNORECASE,
)
CORRECT_THRESHOLD = 0.5
"""Partial scores of at least this value count as right."""


def classify_answer_format(text: str) -> str:
    """The format of an answer, one of `ANSWER_FORMATS`; the first of these rules that matches decides.

    A time anywhere in the text is "clock", a letter as the whole answer "letter", "yes" or "no" at the start "yes_no",
    a number in digits or words anywhere "number", and everything else "other".
    """
    text = text.strip()
    if _CLOCK.search(text):
        return "clock"
    if _LETTER.fullmatch(text):
        return "letter"
    if _YES_NO.match(text):
        return "yes_no"
    return "number" if _NUMBER.search(text) else "other"


def collect_wrong_flips(
    task: str, answers_before: Sequence[Mapping[str, Any]], answers_after: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The samples that were answered right before and wrong after, as rows of flips.parquet.

    Both arguments have answers (sample_id, image_id, question, references, text, value) to the same samples in the same
    order; raises DataError otherwise.
    """
    rows = []
    for before, after in _pair_answers(task, answers_before, answers_after):
        if before["value"] >= CORRECT_THRESHOLD > after["value"]:
            rows.append(
                {
                    "task": task,
                    "sample_id": after["sample_id"],
                    "image_id": after["image_id"],
                    "question": after["question"],
                    "reference": after["references"][0],
                    "before": before["text"],
                    "after": after["text"],
                    "answer_format": classify_answer_format(after["text"]),
                    "format_before": classify_answer_format(before["text"]),
                }
            )
    return rows


def count_answer_flips(
    task: str, answers_before: Sequence[Mapping[str, Any]], answers_after: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Count the answers of a task that changed from right to wrong and back, and the formats of the wrong ones.

    In the result, `answer_format` counts the answers that became wrong by their format, and `changed_formats` only
    those of them whose right answer before had another format. Raises DataError as `collect_wrong_flips` does.
    """
    rows = collect_wrong_flips(task, answers_before, answers_after)
    pairs = list(_pair_answers(task, answers_before, answers_after))
    return {
        "n": len(pairs),
        "right_before": sum(before["value"] >= CORRECT_THRESHOLD for before, _ in pairs),
        "right_to_wrong": len(rows),
        "wrong_to_right": sum(after["value"] >= CORRECT_THRESHOLD > before["value"] for before, after in pairs),
        "answer_format": {name: sum(row["answer_format"] == name for row in rows) for name in ANSWER_FORMATS},
        "changed_formats": {
            name: sum(row["answer_format"] == name and row["format_before"] != name for row in rows)
            for name in ANSWER_FORMATS
        },
    }


def _pair_answers(
    task: str, answers_before: Sequence[Mapping[str, Any]], answers_after: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    if [row["sample_id"] for row in answers_before] != [row["sample_id"] for row in answers_after]:
        raise DataError(f"task {task}: the answers before and after are not to the same samples")
    return list(zip(answers_before, answers_after, strict=True))
