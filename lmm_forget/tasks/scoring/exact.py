"""Normalised exact match and yes/no answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lmm_forget.errors import DataError
from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.words import contains, normalize, words

UNDECIDED = re.compile(r"(yes|no)\s*(?:/|,?\s*(?:and|or))\s*(yes|no)\b")
DECIDED = re.compile(r"(?:(?:the\s+)?answer(?:\s+is|\s*:)\s*|\W*)(yes|no)(?!\w)")


def equals_any(answer: str, references: Sequence[str]) -> bool:
    """Whether an answer equals a reference up to case and white space."""
    plain = normalize(answer)
    return any(plain == normalize(reference) for reference in references)


def contains_any(answer: str, references: Sequence[str]) -> bool:
    """Whether the words of a reference stand side by side in an answer."""
    found = words(answer)
    return any(contains(found, words(reference)) for reference in references)


def read_yes_no(answer: str) -> str | None:
    """The yes or no that an answer starts with, or that follows "the answer is" at its start, else None."""
    match = DECIDED.match(normalize(answer))
    if match is None or UNDECIDED.match(match.string, match.start(1)):
        return None
    return match[1]


@dataclass(frozen=True)
class ExactMatch(AnswerScorer):
    """`value`: the answer equals a reference up to case and white space.

    `tolerant`: a reference occurs in the answer as whole words, or equals it up to punctuation.
    """

    def strict(self, answer: str, sample: Sample) -> float:
        """1 for equality up to case and white space."""
        return float(equals_any(answer, sample.answers))

    def tolerant(self, answer: str, sample: Sample) -> float:
        """1 where a reference's words stand in the answer."""
        return float(contains_any(answer, sample.answers))


@dataclass(frozen=True)
class YesNo(AnswerScorer):
    """`value`: the answer is the reference yes or no, up to case and white space; `tolerant`: `read_yes_no`.

    Raises DataError for a sample with a reference that is neither yes nor no.
    """

    def strict(self, answer: str, sample: Sample) -> float:
        """1 for the bare word."""
        for reference in sample.answers:
            if normalize(reference) not in ("yes", "no"):
                raise DataError(f"sample {sample.id}: answer {reference!r} is neither yes nor no")
        return float(equals_any(answer, sample.answers))

    def tolerant(self, answer: str, sample: Sample) -> float:
        """1 for an answer that begins with the word."""
        return float(read_yes_no(answer) in {normalize(reference) for reference in sample.answers})
