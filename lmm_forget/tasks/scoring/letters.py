"""Lettered multiple choice: strict letter, and a format-tolerant reading of common ways to name an option."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lmm_forget.errors import DataError
from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.numbers import plain_figures
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.words import ARTICLES, tokens
from lmm_forget.tasks.scoring.wrapping import final_parts, unwrap

CHINESE = re.compile(r"(?:正确)?答案\s*(?:是|为)?\s*:?\s*(?:选项\s*)?")
CAPITAL = re.compile(r"[A-Z](?![A-Za-z0-9])")
_OPEN, _SHUT = r"[\"'(\[{<]*\s*", r"\s*[\"')\]}>]*"
LONE = re.compile(r"[^\w¬≠!~+-]*([A-Za-z])[^\w+#-]*")
LEADING = re.compile(
    r"(?:(?:option|choice|answer)\s+)?(?-i:"
    r"[\"'(\[{<]\s*([A-Z])\s*[\"')\]}>]\s*[.):]?(?:\s*-\s)?|([A-Z])\s*[.):]\)?|([A-Z])\s+-\s"
    r"|([A-Z])(?=,?\s+(?:because|since)\b)"
    r")\s*(?P<rest>\S.*)",
    re.IGNORECASE,
)
BESIDE = re.compile(r"([A-Z])(?:,\s*|\s+)(\S.*)")
_SO = r"(?:(?:so|thus|hence|therefore|ok|okay|well|finally|then|sure)\b[,.!:]?\s+)*"
_KIND = (
    r"(?:(?:final|correct|right|best|most\s+likely|most\s+appropriate)\s+)*"
    r"(?:answer|option|choice|letter|response|solution|ans)\b\.?(?:\s+to\s+(?:the|this|your)\s+question)?"
)
_IS = (
    r"(?:\s+(?:is|would\s+be|should\s+be|must\s+be)\b(?!\s+not\b)(?:\s+(?:therefore|thus|likely|probably))?)"
)
LEAD_IN = re.compile(
    rf"{_SO}(?:i\s+(?:think|believe)\s+(?:that\s+)?)?(?:(?:the|my|your)\s+)?{_KIND}(?:{_IS}\s*:?|\s*[:=]|\s+-\s)\s*(?P<rest>\S.*)",
    re.IGNORECASE,
)
NAMED = re.compile(
    rf"(?i:\b(?:answer|option|choice|ans\.?)\b(?:{_IS}|\s*[:=]|\s+-\s)?\s*:?\s*(?:option\s+)?)"
    rf"{_OPEN}([A-Z]){_SHUT}\s*(?=[.,;:!)]|$)"
)
ANSWERED = re.compile(
    rf"(?i:\b(?:answer|ans\.?)\b(?:{_IS}|\s*[:=]|\s+-\s)\s*:?\s*(?:option\s+)?){_OPEN}([A-Z]){_SHUT}\s*(?=[.,;:!)]|$)"
)
CHOSEN = re.compile(
    r"(?i:\b(?:i(?:'d|\s+would|'ll|\s+will)?\s+(?:go\s+with|say)|choose|pick|select"
    r"|(?:it|that|this)(?:'s|\s+is|\s+(?:should|must|would)\s+be)|(?:so|thus|hence|therefore),?)\s+(?:option\s+)?)"
    rf"{_OPEN}([A-Z]){_SHUT}\s*(?=[.,;:!)]|$)"
)
RIGHT = re.compile(
    rf"(?:^|,\s+|(?i:\b(?:so|thus|hence|therefore)\s+))(?i:(?:option|choice)\s+)?{_OPEN}([A-Z]){_SHUT}\s*[.]?\s+"
    r"(?i:is\s+(?:the\s+)?(?:correct|right|best|answer)\b)"
)
WRONG = re.compile(r"(?:is|are|looks?|seems?)?\s*(?:not\b|n't\b|incorrect|wrong|false)", re.IGNORECASE)
DENIED = re.compile(
    r"(?:\bnot|n't|\bneither|\bnor|\bnever|\bexcept|\bthan|\binstead\s+of|\bcannot\s+be|\bexclud(?:e|ing)"
    r"|\brul(?:e|ed|es|ing)\s+out|\beliminat(?:e|ed|es|ing))(?:\s+(?:think|believe|say|that|the|be|a|an|correct|right|best|is))*\s*$",
    re.IGNORECASE,
)
DEEPEST = 4
SEVERAL = re.compile(
    rf"(?<!\w){_OPEN}([A-Z]){_SHUT}\s*(?:,|/|&|\+|;|(?:,\s*)?\b(?:or|and)\b)\s*(?:(?:option|maybe|perhaps|possibly)\s+)?"
    rf"{_OPEN}([A-Z])(?![\w'-]){_SHUT}(?=\s*(?:[.,;:!?/&]|$|and\b|or\b))"
)


def option_of_text(text: str, choices: Sequence[str]) -> str | None:
    """Letter of the one option whose words equal those of `text`; None if there is none or more than one.

    A leading article does not count, and figures are read as `plain_figures` has them.
    """
    wanted = _plain(text)
    same = [i for i, choice in enumerate(choices) if wanted and _plain(choice) == wanted]
    return string.ascii_uppercase[same[0]] if len(same) == 1 else None


@lru_cache(maxsize=4096)
def _plain(text: str) -> list[str]:
    if text.isascii() and text.replace(" ", "").isalpha():
        found = text.lower().split()
    else:
        found = tokens(plain_figures(unwrap(text)))
    return found[1:] if len(found) > 1 and found[0] in ARTICLES else found


def read_letter(answer: str, choices: Sequence[str] | None = None) -> str | None:
    """The option an answer names: "B", "b", "B.", "(B)", "B. text", the option's text, or "the answer is" any of these.

    Markup around it is taken off (see `wrapping`); tags and boxes that mark an answer decide. Of several lines those
    count that are a letter alone or say what the answer is, and the first and the last; a list of the options does
    not. None where nothing is named, more than one option is named, letter and text contradict each other, or the
    letter is not among the choices. A sentence that merely starts with the article "A" names nothing, nor does
    "not B".
    """
    choices = choices or ()
    letters = string.ascii_uppercase[: len(choices)] if choices else string.ascii_uppercase
    found: set[str] = set()
    for part in final_parts(answer):
        part = CHINESE.sub("Answer: ", part)
        found |= _of_lines(
            [line for line in (" ".join(line.split()) for line in part.splitlines()) if line], choices
        )
    return found.pop() if len(found) == 1 and found <= set(letters) else None


def _of_lines(lines: list[str], choices: Sequence[str]) -> set[str]:
    """All letters that the lines of an answer name."""
    if len(lines) == 1:
        return _named(lines[0], choices)
    listed = {line: _letter(match) for line in lines if (match := LEADING.fullmatch(line))}
    if len(set(listed.values())) > 1 and len(lines) > len(listed):
        lines = [line for line in lines if line not in listed]
    found: set[str] = set()
    for i, line in enumerate(lines):
        if i in (0, len(lines) - 1) or LONE.fullmatch(line) or LEAD_IN.fullmatch(line):
            found |= _named(line, choices)
        else:
            found |= _all(ANSWERED, line)
    return found


def _named(text: str, choices: Sequence[str], deep: int = 0) -> set[str]:
    """All letters that one line names, in any way; at most DEEPEST announcements are read one inside another."""
    if lone := LONE.fullmatch(text):
        return {lone[1].upper()}
    lower = text.lower()
    announced = "ans" in lower or any(
        word in lower for word in ("option", "choice", "letter", "response", "solution")
    )
    found: set[str] = set()
    if CAPITAL.search(text):  # no letter is named without one
        found = (_all(NAMED, text) if announced else found) | _all(CHOSEN, text)
        found |= _all(RIGHT, text)
        if leading := LEADING.fullmatch(text):
            found |= _with_text(_letter(leading), leading["rest"], choices)
            announced = False
        elif (beside := BESIDE.fullmatch(text)) and option_of_text(beside[2], choices) == beside[1]:
            found.add(beside[1])  # "B blue bird"
            announced = False
    if announced and deep < DEEPEST and (lead_in := LEAD_IN.fullmatch(text)):
        found |= _named(lead_in["rest"], choices, deep + 1)
    if found:
        letters = set(string.ascii_uppercase[: len(choices) or 26])
        for match in SEVERAL.finditer(text):
            if found.intersection(match.groups()):  # not the "A and B" of "D, unlike A and B"
                found |= letters.intersection(match.groups())
    elif by_text := option_of_text(text, choices):
        found.add(by_text)
    return found


def _with_text(letter: str, rest: str, choices: Sequence[str]) -> set[str]:
    """The letters that "B. text" names: that letter, and what the text says."""
    if WRONG.match(rest):
        return set()
    found = {letter} | _all(NAMED, rest)
    if by_text := option_of_text(rest, choices):
        found.add(by_text)
    if second := LEADING.fullmatch(rest):  # "A) B)": two options
        found.add(_letter(second))
    elif lone := LONE.fullmatch(rest):
        found.add(lone[1].upper())
    return found


def _all(pattern: re.Pattern[str], text: str) -> set[str]:
    """The letters of all matches that nothing right before them denies."""
    starts = [(match[1], match.start()) for match in pattern.finditer(text)]
    return {letter for letter, start in starts if not DENIED.search(text, max(0, start - 80), start)}


def _letter(match: re.Match[str]) -> str:
    return next(group for group in match.groups()[:4] if group)


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
