"""Find and score numbers in sentences: digits and English number words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from lmm_forget.errors import DataError
from lmm_forget.tasks.scoring.markup import extract_final_answers, extract_stated_answers
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.tokenizing import normalize_text
from lmm_forget.tasks.task import Sample

SMALL_NUMBERS = {
    word: i
    for i, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
        + ["twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
    )
}
TENS = {
    word: 10 * i
    for i, word in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2)
}
SMALL_NUMBERS |= TENS
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

# A number token has no letter or digit right beside it: neither "mp3" nor "5th" contains a number. Digits that an
# operator joins ("1/2", "2^2", "5x5", "3:45", "3-3"), that have a scale ("5 million") or another sign ("-$5", "√5")
# are not plain numbers either.
_FIGURE = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
TOKEN = re.compile(
    r"(?P<word>[^\W\d_]+)"
    r"|(?P<joined>(?<!\w)[-+]?\d[\d.,]*(?:(?: ?[x*^/÷] ?|[-+:=·])[-+]?(?:\d[\d.,]*|\{[^{}]*\})(?!\w))+)"
    r"|(?P<signed>(?<!\w)- ?[$€£¥₹] ?\.?\d[\d.,]*|(?:\A- |[√∛±∓≠] ?)\.?\d[\d.,]*)"
    rf"|(?P<scaled>(?<!\w)[-+]?{_FIGURE}\s+(?:hundred|thousand|[mbtr]+illion|dozen|lakh|crore|bn|mn|tn|k)s?\b)"
    rf"|(?P<digits>(?<!\w)[-+]?(?:(?<![\w.])\.\d+|{_FIGURE})(?!\w|,\d|\.\d))"
    r"|(?P<malformed>(?<!\w)[-+]?\d[\d.,]*\d(?!\w))"
    r"|(?P<other>[^\s])"
)
_DIGIT = re.compile(r"\d")
# Text before or after a number that makes it a part ("half of 3"), a bound ("at least 3") or another number.
_TAGS = re.compile(r"</?[a-z|][^<>]*(?:>|\Z)")
_BEFORE = re.compile(
    r"(?:\b(?:minus|negative|not|no|than|over|under|above|below|exceed(?:s|ing)?|beyond|at (?:least|most)|up to"
    r"|twice|double|half|(?:half|quarter|third) of)|(?<![=-])>=?|<=?|[≤≥^])\s*\Z"
)
_AFTER = re.compile(
    r"\s?[%‰]|\s?\+(?!\s?\w)|[ -](?:percent|per cent|[mbtr]+illions?|dozens?|half|halves|quarters?|first|thirds?"
    r"|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand|million)ths?)\b|-second\b"
    r"|,? and an? (?:half|quarter|third|fifth|tenth)\b|,? or (?:more|less|fewer|greater|higher|above|below)\b"
    r"|,? at (?:least|most)\b"
)

# Ways to write a number that only tolerant scores accept.
_SIGNED_MONEY = re.compile(r"(?<!\w)([-+])\s?([$€£¥₹])\s?(?=[\d.])|(?<!\w)([$€£¥₹])\s?([-+])(?=[\d.])")
_SAID_MINUS = re.compile(r"\b(?:minus|negative)\s+(?=[$€£¥₹]?\s?\.?\d)", re.IGNORECASE)
_FIRST_MINUS = re.compile(r"\A\s*-\s+(?=\.?\d)")
_RANGE = re.compile(
    r"(?<![\w.,-])(\d+(?:[.,]\d+)*)\s?(-|\bor\b|\bto\b)\s?(\d+(?:[.,]\d+)*)(?![\w-]|[.,]\d)", re.IGNORECASE
)
_GROUPED = re.compile(r"(?<![\w.,'])(?<!\d )\d{1,3}(?:,\d{3}|[ ']\d{3}(?!,))+(?!\w|[,' ]\d)")
_UNITS = (
    "mm cm dm km kg mg lb lbs oz ml cl hz khz mhz ghz kb mb gb tb kcal cal kwh kw mph kmh km/h ft in yd px pt "
    "usd eur gbp inr cny min sec hrs hr yrs yr years days"
)
_SCALED = re.compile(rf"(?<![\w.,])({_FIGURE})\s+(hundred|thousand|million|billion|trillion)\b", re.IGNORECASE)
_ZEROS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_UNIT = re.compile(rf"(?<![\w.,])([-+]?\d+(?:[.,]\d+)*)(?=(?:{'|'.join(_UNITS.split())})\b)", re.IGNORECASE)


class _NumberWordParser:
    """Reads consecutive number words ("two hundred and five") into one value."""

    def __init__(self) -> None:
        self.total: int | None = None  # value of the completed thousands, millions, …
        self.current: int | None = None  # value below the next scale word
        self.has_hundreds = False  # whether `current` includes hundreds
        self.scale = 0  # last scale above hundred; 0: none yet
        self.last_word = ""
        self.has_begun = False

    def add_word(self, word: str) -> bool:
        """Add a word if it continues the number; returns whether it does."""
        scale = SCALES.get(word, 0)
        if scale == 100 and self.current and not self.has_hundreds:
            self.current, self.has_hundreds = self.current * scale, True
        elif scale > 100 and self.current and (not self.scale or scale < self.scale):
            self.total = (self.total or 0) + self.current * scale
            self.current, self.has_hundreds, self.scale = None, False, scale
        elif word in SMALL_NUMBERS and self._can_add_value(SMALL_NUMBERS[word]):
            self.current = (self.current or 0) + SMALL_NUMBERS[word]
        else:
            return False
        self.last_word = word
        return True

    def _can_add_value(self, value: int) -> bool:
        if self.current is None:
            return self.total is None or value > 0
        if self.current % 100 == 0 and self.last_word == "hundred":
            return value > 0
        return self.last_word in TENS and 0 < value < 10

    def get_value(self) -> Decimal | None:
        """The value of the words added so far; None if there are none."""
        if self.total is None and self.current is None:
            return None
        return Decimal((self.total or 0) + (self.current or 0))


def find_numbers(text: str) -> list[Decimal | None]:
    """The numbers of a text in order.

    Reads "5", "-5", "2.5", "1,250", "seventeen", "twenty-one", "two hundred and five". Digits with letters beside them
    ("mp3", "5th") and number words inside other words ("someone") are not numbers. None stands for digits that are not
    a plain number ("1,2,3", "1.2.3", "1/2", "2^2", "5 million", "minus 5") and for a part or a bound ("5%", "5 and a
    half", "two thirds", "more than 5", "5+").
    """
    return list(_find_numbers_in_normalized(normalize_text(text)))


@lru_cache(maxsize=4096)
def _find_numbers_in_normalized(normalized: str) -> tuple[Decimal | None, ...]:
    numbers: list[Decimal | None] = []
    parser = _NumberWordParser()
    pending_link = ""  # a hyphen or "and" after a number word; part of the number if a number word follows
    start = end = 0  # span of the current run of number words

    def add_number(value: Decimal, start: int, end: int) -> None:
        before = _TAGS.sub("", normalized[max(0, start - 40) : start])
        numbers.append(None if _BEFORE.search(before) or _AFTER.match(normalized, end) else value)

    def finish_number() -> None:
        nonlocal parser, pending_link
        value = parser.get_value()
        if value is not None:
            add_number(value, start, end)
        parser, pending_link = _NumberWordParser(), ""

    for match in TOKEN.finditer(normalized):
        token, kind = match[0], match.lastgroup
        if kind == "word" and parser.add_word(token):
            start, pending_link, end = start if parser.has_begun else match.start(), "", match.end()
            parser.has_begun = True
        elif (
            parser.last_word and not pending_link and (token == "-" or (token == "and" and parser.last_word in SCALES))
        ):
            pending_link = token
        else:
            finish_number()
            if kind == "digits":
                add_number(Decimal(token.replace(",", "")), match.start(), match.end())
            elif kind in ("malformed", "joined", "signed", "scaled"):
                numbers.append(None)
            elif kind == "word" and parser.add_word(token):
                parser.has_begun, start, end = True, match.start(), match.end()
    finish_number()
    return tuple(numbers)


def extract_single_number(text: str) -> Decimal | None:
    """The only number that a text states; None if it has none, or several that differ."""
    numbers = set(find_numbers(text))
    return numbers.pop() if len(numbers) == 1 else None


def normalize_numbers(text: str) -> str:
    """Rewrite numbers in the format that `find_numbers` and `tokenize_text` read; used by tolerant scores.

    "1,234", "1 234" and "1'234" become "1234"; "-$5", "$-5", "- 5" and "minus 5" become "-5"; "5cm" becomes "5 cm",
    "1.5 million" "1500000". Units of one letter stay: "5m" may be metres or millions.
    """
    if not _DIGIT.search(text):
        return text
    text = _SIGNED_MONEY.sub(lambda m: f"{m[2] or m[3]} {m[1] or m[4]}", text)
    text = _SAID_MINUS.sub("-", _FIRST_MINUS.sub("-", text))
    text = _GROUPED.sub(lambda m: re.sub("[ ',]", "", m[0]), text)
    text = _SCALED.sub(lambda m: _expand_scale(m[1], m[2]), text)
    return _UNIT.sub(r"\1 ", text)


def join_number_ranges(text: str) -> str:
    """Join "5-6", "5 to 6" and "5 or 6" to one word each, so that neither number is found alone."""
    return _RANGE.sub(r"\1_\2_\3", text)


def _expand_scale(digits: str, scale: str) -> str:
    whole, _, decimals = digits.replace(",", "").partition(".")
    zeros = _ZEROS[scale.lower()]
    remaining_decimals = decimals[zeros:].rstrip("0")
    return whole + decimals[:zeros].ljust(zeros, "0") + (f".{remaining_decimals}" if remaining_decimals else "")


def extract_stated_number(answer: str) -> Decimal | None:
    """The only number after "the answer is" (see `extract_stated_answers`), or else in the whole answer; or None."""
    for parts in (extract_stated_answers(answer), extract_final_answers(answer)):
        numbers = {number for part in parts for number in find_numbers(normalize_numbers(part))}
        if numbers:
            return numbers.pop() if len(numbers) == 1 else None
    return None


ZERO_WORDS = re.compile(r"\b(?:no|none|nothing|nobody)\b")
REFUSAL = re.compile(
    r"\bno (?:\w+ ){0,2}(?:idea|clue|answer|information|way|means|image|picture|data)\b"
    r"|\bcan ?(?:not|'t)\b|\bunable\b|\bsorry\b|\b(?:not|n't) know\b"
    r"|\bimpossible\b|\bunclear\b|\bunknown\b|\bnot (?:\w+ )?(?:sure|certain|able|clear|possible)\b"
)


@dataclass(frozen=True)
class WholeNumberScorer(AnswerScorer):
    """Strict: the only number in the answer equals that of a reference.

    Tolerant: also the number after "the answer is" (see `extract_stated_number`), and zero for "no" or "none" unless
    the answer is a refusal ("no idea"). Raises DataError for a reference that does not state exactly one whole number.
    """

    def score_strict(self, answer: str, sample: Sample) -> float:
        """1 if the answer states only the right number, in digits or words, alone or in a sentence, else 0."""
        return float(extract_single_number(answer) in [self._parse_reference(text, sample) for text in sample.answers])

    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """1 if the answer states the right number in any known way, else 0; see the class docstring."""
        number = extract_stated_number(answer)
        text = normalize_text(answer).replace("no one", "nobody")
        if not REFUSAL.search(text) and not find_numbers(text) and ZERO_WORDS.search(text):
            number = Decimal(0)
        return float(number is not None and number in [self._parse_reference(text, sample) for text in sample.answers])

    def _parse_reference(self, text: str, sample: Sample) -> Decimal:
        number = extract_single_number(text)
        if number is None or number != number.to_integral_value():
            raise DataError(f"sample {sample.id}: answer {text!r} does not state one whole number")
        return number
