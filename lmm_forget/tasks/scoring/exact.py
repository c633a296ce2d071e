"""Normalised exact match and yes/no answers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmm_forget.errors import DataError
from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.words import contains, normalize, words


@dataclass(frozen=True)
class ExactMatch:
    """`value`: the answer equals a reference up to case and white space.

    `tolerant`: a reference occurs in the answer as whole words, or equals it up to punctuation.
    """

    def __call__(self, answer: str, sample: Sample) -> dict[str, float | None]:
        """Score one answer in 0..1."""
        plain = normalize(answer)
        value = float(any(plain == normalize(reference) for reference in sample.answers))
        found = words(answer)
        tolerant = float(any(contains(found, words(reference)) for reference in sample.answers))
        return {"value": value, "tolerant": max(value, tolerant), "compat": None}


UNDECIDED = re.compile(r"(yes|no)\s*(?:/|,?\s*(?:and|or))\s*(yes|no)\b")
DECIDED = re.compile(r"(?:(?:the\s+)?answer(?:\s+is|\s*:)\s*|\W*)(yes|no)(?!\w)")


def read_yes_no(answer: str) -> str | None:
    """The yes or no that an answer starts with, or that follows "the answer is" at its start, else None."""
    match = DECIDED.match(normalize(answer))
    if match is None or UNDECIDED.match(match.string, match.start(1)):
        return None
    return match[1]


@dataclass(frozen=True)
class YesNo:
    """`value`: the answer is the reference yes or no, up to case and white space; `tolerant`: `read_yes_no`.

    Raises DataError for a sample whose reference is neither yes nor no.
    """

    def __call__(self, answer: str, sample: Sample) -> dict[str, float | None]:
        """Score one answer in 0..1."""
        reference = normalize(sample.answers[0])
        if reference not in ("yes", "no"):
            raise DataError(f"sample {sample.id}: answer {sample.answers[0]!r} is neither yes nor no")
        value = float(normalize(answer) == reference)
        tolerant = float(read_yes_no(answer) == reference)
        return {"value": value, "tolerant": max(value, tolerant), "compat": None}
