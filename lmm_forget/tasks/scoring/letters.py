"""Score lettered multiple choice: the exact letter, or one of the common ways to name an option."""

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
    """Letter of the only option whose words equal those of `text`; None if there is none or more than one.

    Leading articles are ignored, and numbers are compared after `normalize_numbers`.
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
    """The option that an answer names as "B", "b", "B.", "(B)", "B. text", its text, or any of these after a lead-in.

    Markup is removed first; if tags or boxes mark the answer, only their content counts (see `extract_final_answers`).
    Of an answer with several lines, the first and last line count, and lines that are only a letter or state the
    answer, but not a list of the options. Returns None if no option or more than one is named, if letter and text
    contradict each other, or if the letter is not among the choices. A sentence that only starts with the article "A"
    names no option, nor does "not B".
    """
    choices = choices or ()
    letters = string.ascii_uppercase[: len(choices)] if choices else string.ascii_uppercase
    named_letters: set[str] = set()
    for part in extract_final_answers(answer):
        part = CHINESE_LEAD_IN.sub("Answer: ", part)
        named_letters |= _find_letters_in_lines(
            [line for line in (" ".join(line.split()) for line in part.splitlines()) if line], choices
        )
    return named_letters.pop() if len(named_letters) == 1 and named_letters <= set(letters) else None


def _find_letters_in_lines(lines: list[str], choices: Sequence[str]) -> set[str]:
    """The letters that the lines of an answer name."""
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
    """The letters that one line names in any way; at most `MAX_LEAD_IN_DEPTH` nested lead-ins are read."""
    if lone := LONE_LETTER.fullmatch(text):
        return {lone[1].upper()}
    lower = text.lower()
    lead_in_words = ("ans", "option", "choice", "letter", "response", "solution")
    has_lead_in = any(word in lower for word in lead_in_words)
    named_letters: set[str] = set()
    if CAPITAL_LETTER.search(text):
        if has_lead_in:
            named_letters |= _find_undenied_letters(NAMED_LETTER, text)
        named_letters |= _find_undenied_letters(CHOSEN_LETTER, text) | _find_undenied_letters(CORRECT_LETTER, text)
        if leading := LEADING_LETTER.fullmatch(text):
            named_letters |= _find_letters_with_text(_get_matched_letter(leading), leading["rest"], choices)
            has_lead_in = False
        elif (match := LETTER_THEN_TEXT.fullmatch(text)) and find_choice_letter(match[2], choices) == match[1]:
            named_letters.add(match[1])  # "B blue bird"
            has_lead_in = False
    if has_lead_in and depth < MAX_LEAD_IN_DEPTH and (lead_in := LEAD_IN.fullmatch(text)):
        named_letters |= _find_letters_in_line(lead_in["rest"], choices, depth + 1)
    if named_letters:
        all_letters = set(string.ascii_uppercase[: len(choices) or 26])
        for match in SEVERAL_LETTERS.finditer(text):
            if named_letters.intersection(match.groups()):  # not the "A and B" of "D, unlike A and B"
                named_letters |= all_letters.intersection(match.groups())
    elif letter := find_choice_letter(text, choices):
        named_letters.add(letter)
    return named_letters


def _find_letters_with_text(letter: str, rest: str, choices: Sequence[str]) -> set[str]:
    """The letters that "B. text" names: the letter in front, and those that the text names."""
    if WRONG_STATEMENT.match(rest):
        return set()
    letters = {letter} | _find_undenied_letters(NAMED_LETTER, rest)
    if letter_of_text := find_choice_letter(rest, choices):
        letters.add(letter_of_text)
    if second := LEADING_LETTER.fullmatch(rest):  # "A) B)": two options
        letters.add(_get_matched_letter(second))
    elif lone := LONE_LETTER.fullmatch(rest):
        letters.add(lone[1].upper())
    return letters


def _find_undenied_letters(pattern: re.Pattern[str], text: str) -> set[str]:
    """The letters of all matches of `pattern` that are not negated by the text right before them."""
    starts = [(match[1], match.start()) for match in pattern.finditer(text)]
    return {letter for letter, start in starts if not DENIAL.search(text, max(0, start - 80), start)}


def _get_matched_letter(match: re.Match[str]) -> str:
    return next(group for group in match.groups()[:4] if group)


@dataclass(frozen=True)
class OptionLetterScorer(AnswerScorer):
    """Strict: the answer is exactly the upper-case reference letter. Tolerant: see `extract_choice_letter`.

    Raises DataError for a reference that is not an upper-case letter of the sample's choices.
    """

    def score_strict(self, answer: str, sample: Sample) -> float:
        """1 if the answer is only the right letter, else 0."""
        letters = string.ascii_uppercase[: len(sample.choices)] if sample.choices else string.ascii_uppercase
        for reference in sample.answers:
            if len(reference) != 1 or reference not in letters:
                raise DataError(
                    f"sample {sample.id}: answer {reference!r} is not an option's letter, "
                    f"one of {letters[0]} to {letters[-1]}"
                )
        return float(answer.strip() in sample.answers)

    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """1 if the answer names the right option in any known way, else 0."""
        return float(extract_choice_letter(answer, sample.choices) in sample.answers)
