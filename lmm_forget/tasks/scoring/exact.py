"""Score exact matches and yes/no answers, after normalisation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lmm_forget.errors import DataError
from lmm_forget.tasks.scoring.markup import extract_final_answers, extract_stated_answers, strip_markup
from lmm_forget.tasks.scoring.numbers import join_number_ranges, normalize_numbers
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.tokenizing import (
    contains_words,
    contains_words_without_negation,
    normalize_text,
    tokenize_text,
)
from lmm_forget.tasks.task import Sample

DENYING_WORDS = re.compile(
    r"\b(?:no|without|lacks?|(?:any|every)thing but|other than|rather than|instead of)(?=\s+\w)",
    re.IGNORECASE,
)
BARE_YES_NO = re.compile(r"\W*(yes|no)\W*")
LEADING_YES_NO = re.compile(r"\W*(yes|no)(?!\w)(?P<stop>\W*$|\s*[,.;:!-])?")
NO_ANSWER = re.compile(r"\W*no (?:idea|clue|answer|information|way to (?:know|say|tell))\b")
DECLARED_YES_NO = re.compile(
    r"\b(?:answer|response)(?:\s+to\s+(?:the|this|your)\s+question)?"
    r"(?:\s+(?:is|would be|should be)\b|\s*[:=]|\s+-\s)\W*(yes|no)(?!\w)"
    r"|^(?:i(?:\s+would|'d)?\s+(?:think|say|believe)|it\s+is|it's|sure|(?:so|thus|therefore|based\s+on)\b[^,.]*)"
    r",?\s+(yes|no)(?=\W*$|\s*[,.])"
)
UNDECIDED_YES_NO = re.compile(r"(?:yes|no)\s*(?:[/|-]|,?\s*(?:and|or)\b)\s*(?:yes|no)\b")
YES_AND_NO = re.compile(r"\W*(?:yes\W+no|no\W+yes)\W*")


def equals_any_reference(answer: str, references: Sequence[str]) -> bool:
    """Whether an answer equals a reference up to case, white space and look-alike characters (`fold_unicode`)."""
    normalized = normalize_text(answer)
    return any(normalized == normalize_text(reference) for reference in references)


def contains_any_reference(answer: str, references: Sequence[str]) -> bool:
    """Whether an answer contains the words of a reference side by side; numbers match only as a whole."""
    answer_tokens = tokenize_text(answer)
    return any(contains_words(answer_tokens, tokenize_text(reference)) for reference in references)


def states_any_reference(answer: str, references: Sequence[str]) -> bool:
    """Whether an answer contains a reference without "not" or "without" before it; markup and number formats are read.

    If the answer has a part after "the answer is" or similar (see `extract_stated_answers`), only that part counts.
    """
    parts = [_tokenize_statement(part) for part in extract_stated_answers(answer)]
    reference_tokens = [_tokenize_statement(strip_markup(reference)) for reference in references]
    return any(contains_words_without_negation(part, reference) for part in parts for reference in reference_tokens)


def _tokenize_statement(text: str) -> list[str]:
    """The tokens of a text, with a token "not" added after words such as "without", which negate the next one."""
    return tokenize_text(join_number_ranges(normalize_numbers(DENYING_WORDS.sub(r"\g<0> not", text))))


def extract_yes_no(answer: str) -> str | None:
    """The "yes" or "no" with which an answer starts, or that follows "the answer is"; None if it has none or both.

    Of an answer with several lines, the first one counts, and every line that is only the word or has "the answer is".
    """
    decided_words: set[str] = set()
    opening_words: set[str] = set()
    for part in extract_final_answers(answer):
        lines = [line for line in map(normalize_text, part.splitlines()) if line]
        for i, line in enumerate(lines):
            declared, leading = list(DECLARED_YES_NO.finditer(line)), LEADING_YES_NO.match(line)
            if leading is not None and BARE_YES_NO.fullmatch(line) is None and (i > 0 or NO_ANSWER.match(line)):
                leading = None
            for match in (*declared, *([leading] if leading else ())):
                word = next(filter(None, match.groups()))
                if UNDECIDED_YES_NO.match(line, match.end() - len(word)) or YES_AND_NO.fullmatch(line):
                    return None
                is_aside = match is leading and leading["stop"] is None  # "No other birds", "Yes it is"
                (opening_words if is_aside else decided_words).add(word)
    decided_words = decided_words or opening_words
    return decided_words.pop() if len(decided_words) == 1 else None


@dataclass(frozen=True)
class ExactMatchScorer(AnswerScorer):
    """Strict: the answer equals a reference up to case and white space.

    Tolerant: a reference occurs in the answer as whole words; see `states_any_reference`.
    """

    def score_strict(self, answer: str, sample: Sample) -> float:
        """1 if the answer equals a reference up to case and white space, else 0."""
        return float(equals_any_reference(answer, sample.answers))

    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """1 if the answer contains the words of a reference, else 0."""
        return float(states_any_reference(answer, sample.answers))


@dataclass(frozen=True)
class YesNoScorer(AnswerScorer):
    """Strict: the answer is the reference yes or no, up to case and white space. Tolerant: see `extract_yes_no`.

    Raises DataError for a reference that is neither yes nor no.
    """

    def score_strict(self, answer: str, sample: Sample) -> float:
        """1 if the answer is only the right word, else 0."""
        for reference in sample.answers:
            if normalize_text(reference) not in ("yes", "no"):
                raise DataError(f"sample {sample.id}: answer {reference!r} is neither yes nor no")
        return float(equals_any_reference(answer, sample.answers))

    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """1 if the answer begins with or states the right word, else 0."""
        return float(extract_yes_no(answer) in {normalize_text(reference) for reference in sample.answers})
