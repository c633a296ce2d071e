"""Lettered choices, numbers and short texts side by side, as in RealWorldQA."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.exact import equals_any, states_any
from lmm_forget.tasks.scoring.letters import OptionLetter
from lmm_forget.tasks.scoring.numbers import read_number
from lmm_forget.tasks.scoring.scorer import AnswerScorer

OPTION_LINE = re.compile(r"^\s*([A-Z])[.)]\s+(.*\S)\s*$", re.MULTILINE)
DIGITS = re.compile(r"\s*[-+]?\d+\s*")
LETTER = OptionLetter()


def options_of(question: str) -> tuple[str, ...] | None:
    """The texts of the "A. …" lines of a question if there are two or more, in order from A, else None."""
    lines = OPTION_LINE.findall(question)
    in_order = [letter for letter, _ in lines] == [chr(ord("A") + i) for i in range(len(lines))]
    return tuple(text for _, text in lines) if len(lines) >= 2 and in_order else None


@dataclass(frozen=True)
class ChoiceOrText(AnswerScorer):
    """What the reference is decides: an option's letter (where there are options), a whole number, or a text.

    `value`: exactly the letter; the one number that the answer states ("three" is 3); equality up to case and
    white space. `tolerant`: see `OptionLetter`; a reference that occurs in the answer as whole words. Options
    are the sample's `choices`, or else the "A. …" lines of its question.
    """

    def strict(self, answer: str, sample: Sample) -> float:
        """Letter, number or text, as the reference is."""
        if chosen := _lettered(sample):
            return LETTER.strict(answer, chosen)
        if all(DIGITS.fullmatch(reference) for reference in sample.answers):
            number = read_number(answer)
            return float(number is not None and number in map(read_number, sample.answers))
        return float(equals_any(answer, sample.answers))

    def tolerant(self, answer: str, sample: Sample) -> float:
        """The same inside a longer answer."""
        if chosen := _lettered(sample):
            return LETTER.tolerant(answer, chosen)
        return float(states_any(answer, sample.answers))


def _lettered(sample: Sample) -> Sample | None:
    """The sample with its options, if it has some and the references are among their letters."""
    choices = sample.choices or options_of(sample.question)
    letters = {chr(ord("A") + i) for i in range(len(choices or ()))}
    return replace(sample, choices=choices) if choices and letters.issuperset(sample.answers) else None
