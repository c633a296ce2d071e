"""Numbers in sentences: digits and English number words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from lmm_forget.errors import DataError
from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.words import normalize

SMALL = {
    word: i
    for i, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
        + ["twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
    )
}
TENS = {
    word: 10 * i
    for i, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}
SMALL |= TENS
SCALES = {"hundred": 100, "thousand": 1000}

# A number token has no letter or digit right beside it: neither "mp3" nor "5th" holds a number.
TOKEN = re.compile(
    r"(?P<digits>(?<!\w)[-+]?(?:(?<![\w.])\.\d+|(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?!\w|,\d|\.\d))"
    r"|(?P<malformed>(?<!\w)[-+]?\d[\d.,]*\d(?!\w))"
    r"|(?P<word>[^\W\d_]+)"
    r"|(?P<other>[^\s])"
)
DASHES = re.compile("[\u2010-\u2015\u2212]")


class _Words:
    """Reads consecutive number words ("two hundred and five") into one value."""

    def __init__(self) -> None:
        self.total: int | None = None  # finished thousands
        self.part: int | None = None  # what is read below the next scale
        self.scale = 0  # last scale word that was read
        self.last = ""

    def take(self, word: str) -> bool:
        """Add a word if it continues the number; False if it does not."""
        scaled = word in SCALES and bool(self.part) and self.scale < SCALES[word]
        if scaled and self.part and not (word == "thousand" and self.total is not None):
            self.part *= SCALES[word]
            self.scale = SCALES[word]
            if word == "thousand":
                self.total, self.part, self.scale = self.part, None, 0
        elif word in SMALL and self._fits(SMALL[word]):
            self.part = (self.part or 0) + SMALL[word]
        else:
            return False
        self.last = word
        return True

    def _fits(self, value: int) -> bool:
        if self.part is None:
            return self.total is None or value > 0
        if self.part % 100 == 0 and self.last == "hundred":
            return value > 0
        return self.last in TENS and 0 < value < 10

    def value(self) -> Decimal | None:
        """What has been read so far; None if nothing."""
        if self.total is None and self.part is None:
            return None
        return Decimal((self.total or 0) + (self.part or 0))


def find_numbers(text: str) -> list[Decimal | None]:
    """The numbers of a text in order; None stands for digits that form no number ("1,2,3", "1.2.3").

    Reads "5", "-5", "2.5", "1,250", "seventeen", "twenty-one", "two hundred and five". Letters beside digits
    ("mp3", "5th") and number words inside other words ("someone") are not numbers.
    """
    found: list[Decimal | None] = []
    run = _Words()
    linked = ""  # hyphen or "and" met inside a run; only kept if a number word follows

    def finish() -> None:
        nonlocal run, linked
        value = run.value()
        if value is not None:
            found.append(value)
        run, linked = _Words(), ""

    for match in TOKEN.finditer(DASHES.sub("-", normalize(text))):
        token, kind = match[0], match.lastgroup
        if kind == "word" and run.take(token):
            linked = ""
        elif run.last and not linked and (token == "-" or (token == "and" and run.last in SCALES)):
            linked = token
        else:
            finish()
            if kind == "digits":
                found.append(Decimal(token.replace(",", "")))
            elif kind == "malformed":
                found.append(None)
            elif kind == "word":
                run.take(token)
    finish()
    return found


def read_number(text: str) -> Decimal | None:
    """The one number that a text states; None if it has none, or two that differ."""
    found = set(find_numbers(text))
    return found.pop() if len(found) == 1 else None


NOTHING = re.compile(r"\b(?:no|none|nothing)\b")


@dataclass(frozen=True)
class WholeNumber(AnswerScorer):
    """`value`: the one number in the answer equals a reference's; `tolerant`: "no", "none" are zero too.

    Raises DataError for a sample with a reference that does not state exactly one whole number.
    """

    def strict(self, answer: str, sample: Sample) -> float:
        """1 for the reference's number, in digits or words, in a sentence or alone."""
        return float(read_number(answer) in [self._reference(text, sample) for text in sample.answers])

    def tolerant(self, answer: str, sample: Sample) -> float:
        """1 also where nothing is counted and the reference is zero."""
        nothing = not find_numbers(answer) and NOTHING.search(normalize(answer)) is not None
        return float(nothing and any(self._reference(text, sample) == 0 for text in sample.answers))

    def _reference(self, text: str, sample: Sample) -> Decimal:
        number = read_number(text)
        if number is None or number != number.to_integral_value():
            raise DataError(f"sample {sample.id}: answer {text!r} does not state one whole number")
        return number
