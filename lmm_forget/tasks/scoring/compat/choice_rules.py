"""Multiple choice as public code scores it."""

from __future__ import annotations

import re
import string

from lmm_forget.tasks.task import Sample

PUNCTUATION_REMOVAL = str.maketrans("", "", string.punctuation)
LONE_LETTER = re.compile(r"\b([A-Za-z])\b")
LEADING_LETTER = re.compile(r"([A-Z])\.")
LISTED_OPTION = re.compile(r"\b[A-Z]\.\s+([^\n]*)")
WORDS_AND_SPACES = re.compile(r"[^\w\s]")
DIGIT_OF_WORD = {
    word: str(digit)
    for digit, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
}


def _strip_punctuation(text: str) -> str:
    """Lower case, without ASCII punctuation."""
    return text.lower().translate(PUNCTUATION_REMOVAL)


def _score_equality(text: str, references: tuple[str, ...]) -> float:
    return float(any(text == reference for reference in references))


def score_first_lone_letter(answer: str, sample: Sample) -> float:
    """CUB-200, public code: the first letter that stands alone, else the first character if it is a letter.

    Any single letter counts: "a bird, C" is read as a, "I think D" as i, and "isn't" as t.
    """
    text = answer.strip()
    match = LONE_LETTER.search(text)
    letter = match[1] if match else text[:1] if text[:1].isalpha() else text
    return _score_equality(letter.lower(), tuple(reference.lower() for reference in sample.answers))


def score_leading_letter(answer: str, sample: Sample) -> float:
    """AI2D: "B." at the start means B; else the whole answer is compared, without case and ASCII punctuation.

    So "(b)" is right, "b. text" and "B text" are not.
    """
    text = answer.strip()
    match = LEADING_LETTER.match(text)
    return _score_equality(
        _strip_punctuation(match[1] if match else text), tuple(map(_strip_punctuation, sample.answers))
    )


def score_first_character(answer: str, sample: Sample) -> float:
    """SEED-Bench: the first character, in either case. "Because" is read as B, "(B)" as no letter."""
    return _score_equality(answer.strip()[:1].lower(), tuple(r.lower().strip() for r in sample.answers))


def score_whole_letter(answer: str, sample: Sample) -> float:
    """ScienceQA, public code: the whole answer is the letter, in either case.

    "B." and "B. text" are wrong: the branch meant for them looks for a capital in text that is in lower case.
    """
    return _score_equality(answer.strip().lower(), tuple(r.strip().lower() for r in sample.answers))


def score_letter_or_letter_dot(answer: str, sample: Sample) -> float:
    """ScienceQA, lmms-eval 0.7.3: the letter in either case, or a capital followed by a dot."""
    text = answer.strip()
    letter = text[0] if len(text) >= 2 and text[0].isupper() and text[1] == "." else text
    return _score_equality(letter.lower(), tuple(r.strip().lower() for r in sample.answers))


def score_mmstar_openings(answer: str, sample: Sample) -> float:
    """MMStar, public code: the letter stands at the start, after "(", after "option " or after "the answer is ".

    Case is ignored, and anything may follow the letter: "Apple" is read as A, "the answer is blue" as B.
    """
    text = answer.lower().strip().replace("\n", " ")
    letters = {
        text[len(opening) :][:1] for opening in ("", "(", "option ", "the answer is ") if text.startswith(opening)
    }
    return float(any(r.lower().strip().replace("\n", " ") in letters - {""} for r in sample.answers))


def score_contained_option(answer: str, sample: Sample) -> float:
    """RealWorldQA, public code: the option whose text occurs in the answer, else the answer itself.

    An answer that is a number word up to ten becomes a digit first. Options are read from the question's own
    "A. text" lines and are lettered in their order; the answer loses its punctuation before the search and
    the options do not, so an option with punctuation is never found, while "Yes" is found in "Yesterday".
    """
    text = WORDS_AND_SPACES.sub("", DIGIT_OF_WORD.get(answer.strip().lower(), answer)).strip()
    options = [option.strip() for option in LISTED_OPTION.findall(sample.question)]
    match = re.search("|".join(map(re.escape, options)), text) if options else None
    if match:
        last = len(options) - 1 - options[::-1].index(match[0])  # of equal options, the letter of the last one
        text = chr(ord("A") + last)
    return _score_equality(_strip_punctuation(text), tuple(map(_strip_punctuation, sample.answers)))


ANSWER_PHRASES = (
    *(f"{the}{kind} is" for kind in ("answer", "correct answer", "best answer") for the in ("the ", "")),
    *(f"{the}{kind} option is" for kind in ("correct", "best") for the in ("the ", "")),
    *(f"{the}{kind}choice is" for kind in ("", "correct ") for the in ("the ", "")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
"""Phrases that lmms-eval expects before a letter, also Korean, Chinese and Japanese ones."""


def extract_mcq_letter(answer: str, letters: str = "ABCD") -> str:
    """The capital letter that lmms-eval 0.7.3 extracts from an answer; "" if there is none.

    The first way of naming a letter that occurs decides: the answer starts with it; ends with it; it is the
    last of the letters' first occurrences after a phrase such as "the answer is"; "(B)", "B.", "B:", "B)" or
    "B ", the last one in the text; any capital at all, inside words too. So "A bird, not B, is C." gives A,
    and "the answer is None of ABove" gives B.
    """
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    stripped, padded = text.strip(), f" {text} "
    if not stripped:
        return ""
    if stripped[0] in letters and not stripped[1:2].isalpha():
        return stripped[0]
    if stripped[-1] in letters and not stripped[-2:-1].isalpha():
        return stripped[-1]
    lowered = padded.lower()
    positions = []
    for phrase in ANSWER_PHRASES:
        start = lowered.find(phrase)
        if start >= 0:
            positions += [(padded.find(letter, start + len(phrase)), letter) for letter in letters]
    for letter_format in ("({})", "{}.", "{}:", "{})", "{} ", "{}"):
        last = max(((position, letter) for position, letter in positions if position >= 0), default=None)
        if last:
            return last[1]
        positions = [(padded.rfind(letter_format.format(letter)), letter) for letter in letters]
    return max(((position, letter) for position, letter in positions if position >= 0), default=(0, ""))[1]


def score_extracted_letter(answer: str, sample: Sample) -> float:
    """MMStar, lmms-eval 0.7.3: see `extract_mcq_letter`."""
    return _score_equality(extract_mcq_letter(answer), tuple(r.strip().upper() for r in sample.answers))


def score_extracted_letter_or_text(answer: str, sample: Sample) -> float:
    """RealWorldQA, lmms-eval 0.7.3: `extract_mcq_letter` if the reference is A to D, else equality up to case.

    Full stops at the end of an open answer are ignored; "three" is not 3.
    """

    def is_correct(reference: str) -> bool:
        target = reference.strip()
        if target.upper() in ("A", "B", "C", "D"):
            return extract_mcq_letter(answer) == target.upper()
        return answer.lower().strip().rstrip(".") == target.lower()

    return float(any(map(is_correct, sample.answers)))
