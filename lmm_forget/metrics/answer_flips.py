"""Which questions turned wrong, and in whose manner they are answered now."""

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
"""A score of at least this counts as right, for scores that give parts."""


def classify_answer_format(text: str) -> str:
    """In which format a text answers: one of `KINDS`; a time before a number, and a number anywhere in it counts.

    A letter or a yes or no must be the whole answer, or begin it.
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
    """The samples that `before` answered right and `after` does not; rows as in flips.parquet.

    Both hold answers (sample_id, image_id, question, references, text, value) to the same samples in the same
    order; DataError otherwise.
    """
    rows = []
    for old, new in _pair_answers(task, answers_before, answers_after):
        if old["value"] >= CORRECT_THRESHOLD > new["value"]:
            rows.append(
                {
                    "task": task,
                    "sample_id": new["sample_id"],
                    "image_id": new["image_id"],
                    "question": new["question"],
                    "reference": new["references"][0],
                    "before": old["text"],
                    "after": new["text"],
                    "answer_format": classify_answer_format(new["text"]),
                    "format_before": classify_answer_format(old["text"]),
                }
            )
    return rows


def count_answer_flips(
    task: str, answers_before: Sequence[Mapping[str, Any]], answers_after: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """How many answers of a task turned wrong and right, and the formats of those that turned wrong.

    `answer_format` counts all of them by format; `changed_formats` only those whose right answer had another format.
    """
    rows = collect_wrong_flips(task, answers_before, answers_after)
    pairs = list(_pair_answers(task, answers_before, answers_after))
    return {
        "n": len(pairs),
        "right_before": sum(old["value"] >= CORRECT_THRESHOLD for old, _ in pairs),
        "right_to_wrong": len(rows),
        "wrong_to_right": sum(new["value"] >= CORRECT_THRESHOLD > old["value"] for old, new in pairs),
        "answer_format": {kind: sum(row["answer_format"] == kind for row in rows) for kind in ANSWER_FORMATS},
        "changed_formats": {
            kind: sum(row["answer_format"] == kind and row["format_before"] != kind for row in rows)
            for kind in ANSWER_FORMATS
        },
    }


def _pair_answers(
    task: str, answers_before: Sequence[Mapping[str, Any]], answers_after: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    if [row["sample_id"] for row in answers_before] != [row["sample_id"] for row in answers_after]:
        raise DataError(f"task {task}: the answers before and after are not to the same samples")
    return list(zip(answers_before, answers_after, strict=True))
