"""Score data sets that mix lettered choices, numbers and short texts, such as RealWorldQA."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lmm_forget.tasks.scoring.exact import equals_any_reference, states_any_reference
from lmm_forget.tasks.scoring.letters import OptionLetterScorer
from lmm_forget.tasks.scoring.numbers import extract_single_number
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.task import Sample

OPTION_LINE = re.compile(r"^\s*([A-Z])[.)]\s+(.*\S)\s*$", re.MULTILINE)
DIGITS_PATTERN = re.compile(r"\s*[-+]?\d+\s*")
LETTER_SCORER = OptionLetterScorer()


def parse_option_lines(question: str) -> tuple[str, ...] | None:
    """The texts of the "A. …" lines of a question if there are two or more, in order from A, else None."""
    lines = OPTION_LINE.findall(question)
    in_order = [letter for letter, _ in lines] == [chr(ord("A") + i) for i in range(len(lines))]
    return tuple(text for _, text in lines) if len(lines) >= 2 and in_order else None


@dataclass(frozen=True)
class ChoiceOrTextScorer(AnswerScorer):
    """The kind of reference decides: an option's letter (if there are options), a whole number, or a text.

    Strict: the answer is exactly the letter; or its only number is the reference ("three" is 3); or it equals the text
    up to case and white space. Tolerant: as `OptionLetterScorer` for a letter, else the reference occurs in the answer
    as whole words. Options are the sample's `choices`, or else the "A. …" lines of its question.
    """

    def score_strict(self, answer: str, sample: Sample) -> float:
        """1 if the answer is the reference's letter, number or text, else 0; see the class docstring."""
        if with_choices := _attach_choices(sample):
            return LETTER_SCORER.score_strict(answer, with_choices)
        if all(DIGITS_PATTERN.fullmatch(reference) for reference in sample.answers):
            number = extract_single_number(answer)
            return float(number is not None and number in map(extract_single_number, sample.answers))
        return float(equals_any_reference(answer, sample.answers))

    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """1 if a longer answer names the letter or contains the reference, else 0."""
        if with_choices := _attach_choices(sample):
            return LETTER_SCORER.score_tolerant(answer, with_choices)
        return float(states_any_reference(answer, sample.answers))


def _attach_choices(sample: Sample) -> Sample | None:
    """The sample with its options; None if it has none, or if a reference is not one of their letters."""
    choices = sample.choices or parse_option_lines(sample.question)
    letters = {chr(ord("A") + i) for i in range(len(choices or ()))}
    return replace(sample, choices=choices) if choices and letters.issuperset(sample.answers) else None
