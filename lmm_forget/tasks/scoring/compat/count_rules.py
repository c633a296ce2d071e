"""Counts and clock times as public code scores them."""

from __future__ import annotations

import re

from lmm_forget.tasks.task import Sample

DIGITS = re.compile(r"\d+")
TIME = re.compile(r"(\d{1,2}):(\d{1,2})")
NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)


def _normalize_answer(text: str) -> str:
    return text.strip().lower().replace(".", "")


def _parse_replaced_count(text: str) -> int | None:
    normalized = _normalize_answer(text)
    for number, word in enumerate(NUMBER_WORDS):
        normalized = normalized.replace(word, str(number))
    match = DIGITS.search(normalized)
    return int(match[0]) if match else None


def score_first_number(answer: str, sample: Sample) -> float:
    """PixMo-Count, public code: the first digits, after dots are deleted and number words replaced.

    Words are replaced inside words and in counting order, so "seventeen" is 7, "fourteen" 4, "someone" 1,
    "twenty-one" 20 and "2.5" 25. The reference is read in the same way.
    """
    count = _parse_replaced_count(answer)
    return float(count is not None and any(count == _parse_replaced_count(reference) for reference in sample.answers))


def score_digits_then_words(answer: str, sample: Sample) -> float:
    """CountBench, public code: the first digits after dots are deleted, else the first number word inside words.

    Of several number words the lowest one counts: "seventeen" is 7, "someone saw two" is 1.
    """
    text = _normalize_answer(answer)
    match = DIGITS.search(text)
    count = int(match[0]) if match else next((n for n, word in enumerate(NUMBER_WORDS) if word in text), None)
    return float(count is not None and any(str(count) == reference.strip() for reference in sample.answers))


def score_first_digits(answer: str, sample: Sample) -> float:
    """PixMo-Count, lmms-eval 0.7.3: the first digits as a string, else the whole answer; "07" is not "7"."""

    def extract_digits(text: str) -> str:
        match = DIGITS.search(text)
        return match[0] if match else text.strip()

    return float(any(extract_digits(answer) == extract_digits(reference) for reference in sample.answers))


def score_whole_word(answer: str, sample: Sample) -> float:
    """CountBench, lmms-eval 0.7.3: the whole answer is the number, or a number word up to twenty ("none" is 0)."""

    def parse_count_text(text: str) -> str:
        word = text.strip().lower()
        return str(NUMBER_WORDS.index(word)) if word in NUMBER_WORDS else "0" if word == "none" else word

    return float(any(parse_count_text(answer) == parse_count_text(reference) for reference in sample.answers))


def score_same_string(answer: str, sample: Sample) -> float:
    """CountBenchQA, lmms-eval 0.7.3: the answer is the number's own digits."""
    return float(any(answer.strip() == reference for reference in sample.answers))


def _parse_hour_and_minute(text: str) -> tuple[int, int] | None:
    normalized = _normalize_answer(text)
    match = TIME.search(normalized)
    numbers = match.groups() if match else DIGITS.findall(normalized)[:2]
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None


def score_hour_and_minute(answer: str, sample: Sample) -> float:
    """Clocks, public code: the same hour, and minutes that differ by at most 1 or by 59.

    A time is the first h:m after dots are deleted, else the first two numbers. The hour hand does not wrap:
    12:59 for 1:00 is wrong and so is 12:30 for 00:30, while 3:59 for 3:00 is right.
    """
    answer_time = _parse_hour_and_minute(answer)

    def is_correct(reference: str) -> bool:
        reference_time = _parse_hour_and_minute(reference)
        if answer_time is None or reference_time is None:
            return False
        minutes_apart = abs(answer_time[1] - reference_time[1])
        return answer_time[0] == reference_time[0] and (minutes_apart <= 1 or minutes_apart == 59)

    return float(any(map(is_correct, sample.answers)))
