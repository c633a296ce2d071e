"""Lettered multiple choice: strict letter, and a format-tolerant reading of common ways to name an option."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from lmm_forget.errors import DataError
from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.words import words

LONE = re.compile(r"\(?([A-Za-z])[.):]?\)?\.?")
LEADING = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):])\s*(\S.*)", re.DOTALL)
LEAD_IN = re.compile(
    r"(?:so,?\s+|therefore,?\s+)?(?:the\s+)?(?:(?:correct|right|best)\s+)?(?:answer|option|choice)"
    r"(?:\s+is\b|\s*:)\s*:?\s*(?P<rest>\S.*)",
    re.DOTALL | re.IGNORECASE,
)
NAMED = re.compile(
    r"(?i:\b(?:answer|option|choice)(?:\s+is|\s*:)?\s*(?:option\s+)?)\(?([A-Z])\)?\s*(?=[.,;:!)]|$)"
)


def option_of_text(text: str, choices: Sequence[str]) -> str | None:
    """Letter of the one option whose words equal those of `text`; None if there is none or more than one."""
    wanted = words(text)
    same = [i for i, choice in enumerate(choices) if wanted and words(choice) == wanted]
    return string.ascii_uppercase[same[0]] if len(same) == 1 else None


def read_letter(answer: str, choices: Sequence[str] | None = None) -> str | None:
    """The option an answer names: "B", "b", "B.", "(B)", "B. text", the option's text, or "the answer is" any of these.

    None where nothing is named, more than one option is named, letter and text contradict each other, or the
    letter is not among the choices. A sentence that merely starts with the article "A" names nothing.
    """
    text = " ".join(answer.split())
    choices = choices or ()
    found = _named(text, choices)
    if lead_in := LEAD_IN.fullmatch(text):
        found |= _named(lead_in["rest"], choices)
    letters = string.ascii_uppercase[: len(choices)] if choices else string.ascii_uppercase
    return found.pop() if len(found) == 1 and found <= set(letters) else None


def _named(text: str, choices: Sequence[str]) -> set[str]:
    """All letters that a text names, in any way."""
    found: set[str] = set()
    if lone := LONE.fullmatch(text):
        found.add(lone[1].upper())
    elif leading := LEADING.fullmatch(text):
        found.add(leading[1] or leading[2])
        named_text = option_of_text(leading[3], choices)
        if named_text:
            found.add(named_text)
        found.update(NAMED.findall(leading[3]))
        second = LEADING.fullmatch(leading[3]) or LONE.fullmatch(leading[3])
        if second:  # "A) B)": two options
            found.update(group.upper() for group in second.groups()[:2] if group)
    else:
        found.update(NAMED.findall(text))
    if not found and choices and (by_text := option_of_text(text, choices)):
        found.add(by_text)
    return found


@dataclass(frozen=True)
class OptionLetter(AnswerScorer):
    """`value`: the stripped answer is exactly the upper-case reference letter; `tolerant`: see `read_letter`.

    Raises DataError for a sample whose reference is not one upper-case letter of its choices.
    """

    def strict(self, answer: str, sample: Sample) -> float:
        """1 for the letter and nothing else."""
        letters = string.ascii_uppercase[: len(sample.choices)] if sample.choices else string.ascii_uppercase
        for reference in sample.answers:
            if len(reference) != 1 or reference not in letters:
                raise DataError(
                    f"sample {sample.id}: answer {reference!r} is not an option's letter, "
                    f"one of {letters[0]} to {letters[-1]}"
                )
        return float(answer.strip() in sample.answers)

    def tolerant(self, answer: str, sample: Sample) -> float:
        """1 for an answer that names the option in some other way."""
        return float(read_letter(answer, sample.choices) in sample.answers)
