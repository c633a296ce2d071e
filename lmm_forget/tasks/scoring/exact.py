"""Normalised exact match and yes/no answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lmm_forget.errors import DataError
from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.numbers import plain_figures, whole_ranges
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.words import affirms, contains, normalize, tokens
from lmm_forget.tasks.scoring.wrapping import final_parts, stated, unwrap

DENYING = re.compile(
    r"\b(?:no|without|lacks?|(?:any|every)thing but|other than|rather than|instead of)(?=\s+\w)",
    re.IGNORECASE,
)
BARE = re.compile(r"\W*(yes|no)\W*")
LEADING = re.compile(r"\W*(yes|no)(?!\w)(?P<stop>\W*$|\s*[,.;:!-])?")
NO_ANSWER = re.compile(r"\W*no (?:idea|clue|answer|information|way to (?:know|say|tell))\b")
DECLARED = re.compile(
    r"\b(?:answer|response)(?:\s+to\s+(?:the|this|your)\s+question)?"
    r"(?:\s+(?:is|would be|should be)\b|\s*[:=]|\s+-\s)\W*(yes|no)(?!\w)"
    r"|^(?:i(?:\s+would|'d)?\s+(?:think|say|believe)|it\s+is|it's|sure|(?:so|thus|therefore|based\s+on)\b[^,.]*)"
    r",?\s+(yes|no)(?=\W*$|\s*[,.])"
)
UNDECIDED = re.compile(r"(?:yes|no)\s*(?:[/|-]|,?\s*(?:and|or)\b)\s*(?:yes|no)\b")
BOTH = re.compile(r"\W*(?:yes\W+no|no\W+yes)\W*")


def equals_any(answer: str, references: Sequence[str]) -> bool:
    """Whether an answer equals a reference up to case, white space and look-alikes (`folding.fold`)."""
    plain = normalize(answer)
    return any(plain == normalize(reference) for reference in references)


def contains_any(answer: str, references: Sequence[str]) -> bool:
    """Whether the words of a reference stand side by side in an answer; a number is found whole or not at all."""
    found = tokens(answer)
    return any(contains(found, tokens(reference)) for reference in references)


def states_any(answer: str, references: Sequence[str]) -> bool:
    """The tolerant `contains_any`: no "not" or "without" stands before the reference; markup and formats are read.

    Where the answer says that it answers ("the answer is …", see `wrapping.stated`), only what it says there counts.
    """
    parts = [_stated_words(part) for part in stated(answer)]
    wanted = [_stated_words(unwrap(reference)) for reference in references]
    return any(affirms(part, reference) for part in parts for reference in wanted)


def _stated_words(text: str) -> list[str]:
    """The tokens of a text, with a "not" behind every word that denies what follows it as "not" does."""
    return tokens(whole_ranges(plain_figures(DENYING.sub(r"\g<0> not", text))))


def read_yes_no(answer: str) -> str | None:
    """The yes or no that an answer starts with or is, or that follows "the answer is" in it; None for both.

    Of several lines those count that hold nothing but the word or say "the answer is", and the first one.
    """
    found: set[str] = set()
    opening: set[str] = set()
    for part in final_parts(answer):
        lines = [line for line in map(normalize, part.splitlines()) if line]
        for i, line in enumerate(lines):
            declared, leading = list(DECLARED.finditer(line)), LEADING.match(line)
            if leading is not None and BARE.fullmatch(line) is None and (i > 0 or NO_ANSWER.match(line)):
                leading = None
            for match in (*declared, *([leading] if leading else ())):
                word = next(filter(None, match.groups()))
                if UNDECIDED.match(line, match.end() - len(word)) or BOTH.fullmatch(line):
                    return None
                aside = match is leading and leading["stop"] is None  # "No other birds", "Yes it is"
                (opening if aside else found).add(word)
    found = found or opening
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class ExactMatch(AnswerScorer):
    """`value`: the answer equals a reference up to case and white space.

    `tolerant`: a reference occurs in the answer as whole words, or equals it up to punctuation; see `states_any`.
    """

    def strict(self, answer: str, sample: Sample) -> float:
        """1 for equality up to case and white space."""
        return float(equals_any(answer, sample.answers))

    def tolerant(self, answer: str, sample: Sample) -> float:
        """1 where a reference's words stand in the answer."""
        return float(states_any(answer, sample.answers))


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
