"""How public code reads counts and clock times."""

from __future__ import annotations

import re

from lmm_forget.tasks.base import Sample

DIGITS = re.compile(r"\d+")
TIME = re.compile(r"(\d{1,2}):(\d{1,2})")
WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)


def _plain(text: str) -> str:
    return text.strip().lower().replace(".", "")


def _replaced(text: str) -> int | None:
    plain = _plain(text)
    for number, word in enumerate(WORDS):
        plain = plain.replace(word, str(number))
    match = DIGITS.search(plain)
    return int(match[0]) if match else None


def replaced_words(answer: str, sample: Sample) -> float:
    """PixMo-Count, public code: the first digits, after dots are deleted and number words replaced.

    Words are replaced inside words and in counting order, so "seventeen" is 7, "fourteen" 4, "someone" 1,
    "twenty-one" 20 and "2.5" 25. The reference is read in the same way.
    """
    count = _replaced(answer)
    return float(count is not None and any(count == _replaced(reference) for reference in sample.answers))


def digits_then_words(answer: str, sample: Sample) -> float:
    """CountBench, public code: the first digits after dots are deleted, else the first number word inside words.

    "Number words first" means lowest first: "seventeen" is 7, "someone saw two" is 1.
    """
    plain = _plain(answer)
    match = DIGITS.search(plain)
    count = int(match[0]) if match else next((n for n, word in enumerate(WORDS) if word in plain), None)
    return float(count is not None and any(str(count) == reference.strip() for reference in sample.answers))


def first_digits(answer: str, sample: Sample) -> float:
    """PixMo-Count, lmms-eval 0.7.3: the first digits as a string, else the whole answer; "07" is not "7"."""

    def read(text: str) -> str:
        match = DIGITS.search(text)
        return match[0] if match else text.strip()

    return float(any(read(answer) == read(reference) for reference in sample.answers))


def whole_word(answer: str, sample: Sample) -> float:
    """CountBench, lmms-eval 0.7.3: the whole answer is the number, or a number word up to twenty ("none" is 0)."""

    def read(text: str) -> str:
        plain = text.strip().lower()
        return str(WORDS.index(plain)) if plain in WORDS else "0" if plain == "none" else plain

    return float(any(read(answer) == read(reference) for reference in sample.answers))


def same_string(answer: str, sample: Sample) -> float:
    """CountBenchQA, lmms-eval 0.7.3: the answer is the number's own digits."""
    return float(any(answer.strip() == reference for reference in sample.answers))


def _time(text: str) -> tuple[int, int] | None:
    plain = _plain(text)
    match = TIME.search(plain)
    found = match.groups() if match else DIGITS.findall(plain)[:2]
    return (int(found[0]), int(found[1])) if len(found) == 2 else None


def hour_and_minute(answer: str, sample: Sample) -> float:
    """Clocks, public code: the same hour, and minutes that differ by at most 1 or by 59.

    A time is the first h:m after dots are deleted, else the first two numbers. The hour hand does not wrap:
    12:59 for 1:00 is wrong and so is 12:30 for 00:30, while 3:59 for 3:00 is right.
    """
    said = _time(answer)

    def right(reference: str) -> bool:
        wanted = _time(reference)
        if said is None or wanted is None:
            return False
        apart = abs(said[1] - wanted[1])
        return said[0] == wanted[0] and (apart <= 1 or apart == 59)

    return float(any(map(right, sample.answers)))
