"""Lettered multiple choice: strict letter, and a format-tolerant reading of common ways to name an option."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lmm_forget.errors import DataError
from lmm_forget.tasks.scoring.markup import extract_final_answers, strip_markup
from lmm_forget.tasks.scoring.numbers import normalize_numbers
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.tokenizing import ARTICLES, tokenize_text
from lmm_forget.tasks.task import Sample

CHINESE_LEAD_IN = re.compile(r"(?:正确)?答案\s*(?:是|为)?\s*:?\s*(?:选项\s*)?")
CAPITAL_LETTER = re.compile(r"[A-Z](?![A-Za-z0-9])")
_OPEN, _SHUT = r"[\"'(\[{<]*\s*", r"\s*[\"')\]}>]*"
LONE_LETTER = re.compile(r"[^\w¬≠!~+-]*([A-Za-z])[^\w+#-]*")
LEADING_LETTER = re.compile(
    r"(?:(?:option|choice|answer)\s+)?(?-i:"
    r"[\"'(\[{<]\s*([A-Z])\s*[\"')\]}>]\s*[.):]?(?:\s*-\s)?|([A-Z])\s*[.):]\)?|([A-Z])\s+-\s"
    r"|([A-Z])(?=,?\s+(?:because|since)\b)"
    r")\s*(?P<rest>\S.*)",
    re.IGNORECASE,
)
LETTER_THEN_TEXT = re.compile(r"([A-Z])(?:,\s*|\s+)(\S.*)")
_SO = r"(?:(?:so|thus|hence|therefore|ok|okay|well|finally|then|sure)\b[,.!:]?\s+)*"
_KIND = (
    r"(?:(?:final|correct|right|best|most\s+likely|most\s+appropriate)\s+)*"
    r"(?:answer|option|choice|letter|response|solution|ans)\b\.?(?:\s+to\s+(?:the|this|your)\s+question)?"
)
_IS = r"(?:\s+(?:is|would\s+be|should\s+be|must\s+be)\b(?!\s+not\b)(?:\s+(?:therefore|thus|likely|probably))?)"
LEAD_IN = re.compile(
    rf"{_SO}(?:i\s+(?:think|believe)\s+(?:that\s+)?)?(?:(?:the|my|your)\s+)?{_KIND}(?:{_IS}\s*:?|\s*[:=]|\s+-\s)\s*(?P<rest>\S.*)",
    re.IGNORECASE,
)
NAMED_LETTER = re.compile(
    rf"(?i:\b(?:answer|option|choice|ans\.?)\b(?:{_IS}|\s*[:=]|\s+-\s)?\s*:?\s*(?:option\s+)?)"
    rf"{_OPEN}([A-Z]){_SHUT}\s*(?=[.,;:!)]|$)"
)
ANSWERED_LETTER = re.compile(
    rf"(?i:\b(?:answer|ans\.?)\b(?:{_IS}|\s*[:=]|\s+-\s)\s*:?\s*(?:option\s+)?){_OPEN}([A-Z]){_SHUT}\s*(?=[.,;:!)]|$)"
)
CHOSEN_LETTER = re.compile(
    r"(?i:\b(?:i(?:'d|\s+would|'ll|\s+will)?\s+(?:go\s+with|say)|choose|pick|select"
    r"|(?:it|that|this)(?:'s|\s+is|\s+(?:should|must|would)\s+be)|(?:so|thus|hence|therefore),?)\s+(?:option\s+)?)"
    rf"{_OPEN}([A-Z]){_SHUT}\s*(?=[.,;:!)]|$)"
)
CORRECT_LETTER = re.compile(
    rf"(?:^|,\s+|(?i:\b(?:so|thus|hence|therefore)\s+))(?i:(?:option|choice)\s+)?{_OPEN}([A-Z]){_SHUT}\s*[.]?\s+"
    r"(?i:is\s+(?:the\s+)?(?:correct|right|best|answer)\b)"
)
WRONG_STATEMENT = re.compile(r"(?:is|are|looks?|seems?)?\s*(?:not\b|n't\b|incorrect|wrong|false)", re.IGNORECASE)
DENIAL = re.compile(
    r"(?:\bnot|n't|\bneither|\bnor|\bnever|\bexcept|\bthan|\binstead\s+of|\bcannot\s+be|\bexclud(?:e|ing)"
    r"|\brul(?:e|ed|es|ing)\s+out|\beliminat(?:e|ed|es|ing))(?:\s+(?:think|believe|say|that|the|be|a|an|correct|right|best|is))*\s*$",
    re.IGNORECASE,
)
MAX_LEAD_IN_DEPTH = 4
SEVERAL_LETTERS = re.compile(
    rf"(?<!\w){_OPEN}([A-Z]){_SHUT}\s*(?:,|/|&|\+|;|(?:,\s*)?\b(?:or|and)\b)\s*(?:(?:option|maybe|perhaps|possibly)\s+)?"
    rf"{_OPEN}([A-Z])(?![\w'-]){_SHUT}(?=\s*(?:[.,;:!?/&]|$|and\b|or\b))"
)


def find_choice_letter(text: str, choices: Sequence[str]) -> str | None:
    """Letter of the one option whose words equal those of `text`; None if there is none or more than one.

    A leading article does not count, and figures are read as `normalize_numbers` has them.
    """
    normalized = _normalize_choice(text)
    matches = [i for i, choice in enumerate(choices) if normalized and _normalize_choice(choice) == normalized]
    return string.ascii_uppercase[matches[0]] if len(matches) == 1 else None


@lru_cache(maxsize=4096)
def _normalize_choice(text: str) -> list[str]:
    if text.isascii() and text.replace(" ", "").isalpha():
        choice_words = text.lower().split()
    else:
        choice_words = tokenize_text(normalize_numbers(strip_markup(text)))
    return choice_words[1:] if len(choice_words) > 1 and choice_words[0] in ARTICLES else choice_words


def extract_choice_letter(answer: str, choices: Sequence[str] | None = None) -> str | None:
    """The option an answer names: "B", "b", "B.", "(B)", "B. text", the option's text, or "the answer is" any of these.

    Markup around it is taken off (see `wrapping`); tags and boxes that mark an answer decide. Of several lines those
    count that are a letter alone or say what the answer is, and the first and the last; a list of the options does
    not. None where nothing is named, more than one option is named, letter and text contradict each other, or the
    letter is not among the choices. A sentence that merely starts with the article "A" names nothing, nor does
    "not B".
    """
    choices = choices or ()
    letters = string.ascii_uppercase[: len(choices)] if choices else string.ascii_uppercase
    found_letters: set[str] = set()
    for part in extract_final_answers(answer):
        part = CHINESE_LEAD_IN.sub("Answer: ", part)
        found_letters |= _find_letters_in_lines(
            [line for line in (" ".join(line.split()) for line in part.splitlines()) if line], choices
        )
    return found_letters.pop() if len(found_letters) == 1 and found_letters <= set(letters) else None


def _find_letters_in_lines(lines: list[str], choices: Sequence[str]) -> set[str]:
    """All letters that the lines of an answer name."""
    if len(lines) == 1:
        return _find_letters_in_line(lines[0], choices)
    letter_by_line = {line: _get_matched_letter(match) for line in lines if (match := LEADING_LETTER.fullmatch(line))}
    if len(set(letter_by_line.values())) > 1 and len(lines) > len(letter_by_line):
        lines = [line for line in lines if line not in letter_by_line]
    letters: set[str] = set()
    for i, line in enumerate(lines):
        if i in (0, len(lines) - 1) or LONE_LETTER.fullmatch(line) or LEAD_IN.fullmatch(line):
            letters |= _find_letters_in_line(line, choices)
        else:
            letters |= _find_undenied_letters(ANSWERED_LETTER, line)
    return letters


def _find_letters_in_line(text: str, choices: Sequence[str], depth: int = 0) -> set[str]:
    """All letters that one line names, in any way; at most DEEPEST announcements are read one inside another."""
    if lone := LONE_LETTER.fullmatch(text):
        return {lone[1].upper()}
    lower = text.lower()
    announced = "ans" in lower or any(word in lower for word in ("option", "choice", "letter", "response", "solution"))
    found_letters: set[str] = set()
    if CAPITAL_LETTER.search(text):  # no letter is named without one
        found_letters = (
            _find_undenied_letters(NAMED_LETTER, text) if announced else found_letters
        ) | _find_undenied_letters(CHOSEN_LETTER, text)
        found_letters |= _find_undenied_letters(CORRECT_LETTER, text)
        if leading := LEADING_LETTER.fullmatch(text):
            found_letters |= _find_letters_with_text(_get_matched_letter(leading), leading["rest"], choices)
            announced = False
        elif (beside := LETTER_THEN_TEXT.fullmatch(text)) and find_choice_letter(beside[2], choices) == beside[1]:
            found_letters.add(beside[1])  # "B blue bird"
            announced = False
    if announced and depth < MAX_LEAD_IN_DEPTH and (lead_in := LEAD_IN.fullmatch(text)):
        found_letters |= _find_letters_in_line(lead_in["rest"], choices, depth + 1)
    if found_letters:
        letters = set(string.ascii_uppercase[: len(choices) or 26])
        for match in SEVERAL_LETTERS.finditer(text):
            if found_letters.intersection(match.groups()):  # not the "A and B" of "D, unlike A and B"
                found_letters |= letters.intersection(match.groups())
    elif by_text := find_choice_letter(text, choices):
        found_letters.add(by_text)
    return found_letters


def _find_letters_with_text(letter: str, rest: str, choices: Sequence[str]) -> set[str]:
    """The letters that "B. text" names: that letter, and what the text says."""
    if WRONG_STATEMENT.match(rest):
        return set()
    letters = {letter} | _find_undenied_letters(NAMED_LETTER, rest)
    if by_text := find_choice_letter(rest, choices):
        letters.add(by_text)
    if second := LEADING_LETTER.fullmatch(rest):  # "A) B)": two options
        letters.add(_get_matched_letter(second))
    elif lone := LONE_LETTER.fullmatch(rest):
        letters.add(lone[1].upper())
    return letters


def _find_undenied_letters(pattern: re.Pattern[str], text: str) -> set[str]:
    """The letters of all matches that nothing right before them denies."""
    starts = [(match[1], match.start()) for match in pattern.finditer(text)]
    return {letter for letter, start in starts if not DENIAL.search(text, max(0, start - 80), start)}


def _get_matched_letter(match: re.Match[str]) -> str:
    return next(group for group in match.groups()[:4] if group)


@dataclass(frozen=True)
class OptionLetterScorer(AnswerScorer):
    """`value`: the stripped answer is exactly the upper-case reference letter; `tolerant`: see `extract_choice_letter`.

    Raises DataError for a sample whose reference is not one upper-case letter of its choices.
    """

    def score_strict(self, answer: str, sample: Sample) -> float:
        """1 for the letter and nothing else."""
        letters = string.ascii_uppercase[: len(sample.choices)] if sample.choices else string.ascii_uppercase
        for reference in sample.answers:
            if len(reference) != 1 or reference not in letters:
                raise DataError(
                    f"sample {sample.id}: answer {reference!r} is not an option's letter, "
                    f"one of {letters[0]} to {letters[-1]}"
                )
        return float(answer.strip() in sample.answers)

    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """1 for an answer that names the option in some other way."""
        return float(extract_choice_letter(answer, sample.choices) in sample.answers)
