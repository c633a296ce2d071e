"""How public code reads the option that an answer chooses."""

from __future__ import annotations

import re
import string

from lmm_forget.tasks.base import Sample

UNPUNCTUATED = str.maketrans("", "", string.punctuation)
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


def _bare(text: str) -> str:
    """Lower case, without ASCII punctuation."""
    return text.lower().translate(UNPUNCTUATED)


def _is_any(found: str, references: tuple[str, ...]) -> float:
    return float(any(found == reference for reference in references))


def first_lone_letter(answer: str, sample: Sample) -> float:
    """CUB-200, public code: the first letter that stands alone, else the first character if it is a letter.

    Any lone letter counts: "a bird, C" says a, "I think D" says i, and "isn't" says t.
    """
    text = answer.strip()
    match = LONE_LETTER.search(text)
    found = match[1] if match else text[:1] if text[:1].isalpha() else text
    return _is_any(found.lower(), tuple(reference.lower() for reference in sample.answers))


def leading_letter(answer: str, sample: Sample) -> float:
    """AI2D: "B." at the start says B; else the whole answer is compared, without case and ASCII punctuation.

    So "(b)" is right, "b. text" and "B text" are not.
    """
    text = answer.strip()
    match = LEADING_LETTER.match(text)
    return _is_any(_bare(match[1] if match else text), tuple(map(_bare, sample.answers)))


def first_character(answer: str, sample: Sample) -> float:
    """SEED-Bench: the first character, in either case. "Because" says B, "(B)" says nothing."""
    return _is_any(answer.strip()[:1].lower(), tuple(r.lower().strip() for r in sample.answers))


def whole_letter(answer: str, sample: Sample) -> float:
    """ScienceQA, public code: the whole answer is the letter, in either case.

    "B." and "B. text" are wrong: the branch meant for them looks for a capital in text that is in lower case.
    """
    return _is_any(answer.strip().lower(), tuple(r.strip().lower() for r in sample.answers))


def letter_or_letter_dot(answer: str, sample: Sample) -> float:
    """ScienceQA, lmms-eval 0.7.3: the letter in either case, or a capital followed by a dot."""
    text = answer.strip()
    found = text[0] if len(text) >= 2 and text[0].isupper() and text[1] == "." else text
    return _is_any(found.lower(), tuple(r.strip().lower() for r in sample.answers))


def four_openings(answer: str, sample: Sample) -> float:
    """MMStar, public code: the letter stands at the start, after "(", after "option " or after "the answer is ".

    Case is ignored and nothing has to follow the letter: "Apple" says A, "the answer is blue" says B.
    """
    text = answer.lower().strip().replace("\n", " ")
    found = {
        text[len(opening) :][:1]
        for opening in ("", "(", "option ", "the answer is ")
        if text.startswith(opening)
    }
    return float(any(r.lower().strip().replace("\n", " ") in found - {""} for r in sample.answers))


def option_inside(answer: str, sample: Sample) -> float:
    """RealWorldQA, public code: the option whose text occurs in the answer, else the answer itself.

    An answer that is a number word up to ten becomes a digit first. Options are read from the question's own
    "A. text" lines and are lettered in their order; the answer loses its punctuation before the search and
    the options do not, so an option with punctuation is never found, while "Yes" is found in "Yesterday".
    """
    text = WORDS_AND_SPACES.sub("", DIGIT_OF_WORD.get(answer.strip().lower(), answer)).strip()
    options = [option.strip() for option in LISTED_OPTION.findall(sample.question)]
    found = re.search("|".join(map(re.escape, options)), text) if options else None
    if found:
        last = len(options) - 1 - options[::-1].index(found[0])  # of equal options the last one's letter
        text = chr(ord("A") + last)
    return _is_any(_bare(text), tuple(map(_bare, sample.answers)))


OPENINGS = (
    *(f"{the}{kind} is" for kind in ("answer", "correct answer", "best answer") for the in ("the ", "")),
    *(f"{the}{kind} option is" for kind in ("correct", "best") for the in ("the ", "")),
    *(f"{the}{kind}choice is" for kind in ("", "correct ") for the in ("the ", "")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
"""Phrases, Korean, Chinese and Japanese ones among them, that lmms-eval expects before a letter."""


def mcq_letter(answer: str, letters: str = "ABCD") -> str:
    """The capital that lmms-eval 0.7.3 extracts from an answer, "" if none.

    The first way of naming a letter that occurs decides: the answer starts with it; ends with it; it is the
    last of the letters' first occurrences after a phrase such as "the answer is"; "(B)", "B.", "B:", "B)" or
    "B ", the last one in the text; any capital at all, inside words too. So "A bird, not B, is C." says A,
    and "the answer is None of ABove" says B.
    """
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    bare, padded = text.strip(), f" {text} "
    if not bare:
        return ""
    if bare[0] in letters and not bare[1:2].isalpha():
        return bare[0]
    if bare[-1] in letters and not bare[-2:-1].isalpha():
        return bare[-1]
    lowered = padded.lower()
    places = []
    for phrase in OPENINGS:
        at = lowered.find(phrase)
        if at >= 0:
            places += [(padded.find(letter, at + len(phrase)), letter) for letter in letters]
    for form in ("({})", "{}.", "{}:", "{})", "{} ", "{}"):
        found = max(((place, letter) for place, letter in places if place >= 0), default=None)
        if found:
            return found[1]
        places = [(padded.rfind(form.format(letter)), letter) for letter in letters]
    return max(((place, letter) for place, letter in places if place >= 0), default=(0, ""))[1]


def extracted(answer: str, sample: Sample) -> float:
    """MMStar, lmms-eval 0.7.3: see `mcq_letter`."""
    return _is_any(mcq_letter(answer), tuple(r.strip().upper() for r in sample.answers))


def extracted_or_text(answer: str, sample: Sample) -> float:
    """RealWorldQA, lmms-eval 0.7.3: `mcq_letter` where the reference is A to D, else equal but for case.

    Full stops at the end of an open answer do not count; "three" is not 3.
    """

    def right(reference: str) -> bool:
        wanted = reference.strip()
        if wanted.upper() in ("A", "B", "C", "D"):
            return mcq_letter(answer) == wanted.upper()
        return answer.lower().strip().rstrip(".") == wanted.lower()

    return float(any(map(right, sample.answers)))
