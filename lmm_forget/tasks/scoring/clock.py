"""Score times of day that are read from a 12-hour dial."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmm_forget.errors import DataError
from lmm_forget.tasks.scoring.markup import extract_final_answers, extract_stated_answers
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.tokenizing import normalize_text
from lmm_forget.tasks.task import Sample

DIAL_MINUTES = 12 * 60
STRICT_TIME = re.compile(r"(?<![\w:.^/])(?<!(?<!\w)-)(\d{1,2}):(\d{2})(?::\d{2})?(?![\d^]|:\d)")
LENIENT_TIME = re.compile(r"(?<![\w:.^/])(?<!(?<!\w)-)(\d{1,2})\s*[:.h]\s*(\d{1,2})(?::\d{2})?(?![\d^]|:\d)")
_HOURS = "twelve one two three four five six seven eight nine ten eleven"
HOUR_BY_WORD = {word: i for i, word in enumerate(_HOURS.split())}
_HOUR = rf"(?P<hour>1[0-2]|0?[1-9]|{'|'.join(HOUR_BY_WORD)})"
FULL_HOUR = re.compile(rf"(?<![\w:.,^/-]){_HOUR} ?(?:o'? ?clock|[ap]\.? ?m\b)")
PARTIAL_HOUR = re.compile(
    rf"\b(?:(?P<part>half|(?:a )?quarter)|(?P<minutes>[1-5]?\d|five|ten|twenty(?:[- ]five)?)(?: minutes?)?)"
    rf" (?P<way>past|after|to|before|till) {_HOUR}(?![\w:]|\.\d)"
)
MINUTES_BY_WORD = {"half": 30, "quarter": 15, "five": 5, "ten": 10, "twenty": 20, "twenty five": 25}


def parse_time(text: str, pattern: re.Pattern[str] = STRICT_TIME) -> int | None:
    """Minutes after 12 o'clock (0..719) of the only time in a text; None if there is none or several that differ.

    Hours 0..23 are taken modulo 12, so that 00:30, 12:30 and "12:30 pm" are equal; seconds are ignored.
    """
    times = _find_times(text, pattern)
    return times.pop() if len(times) == 1 else None


def _find_times(text: str, pattern: re.Pattern[str]) -> set[int | None]:
    """The different times of a text; None stands for text in the form of a time that is not one ("27:45")."""
    return {
        (int(hour) * 60 + int(minute)) % DIAL_MINUTES if int(hour) <= 23 and int(minute) <= 59 else None
        for hour, minute in pattern.findall(normalize_text(text))
    }


def find_spoken_times(text: str) -> set[int]:
    """Minutes after 12 o'clock (0..719) of all times in words ("3 o'clock", "3 PM", "quarter to four")."""
    normalized = normalize_text(text)
    times = {_parse_hour(match["hour"]) * 60 % DIAL_MINUTES for match in FULL_HOUR.finditer(normalized)}
    for match in PARTIAL_HOUR.finditer(normalized):
        minutes_text = (match["part"] or match["minutes"]).removeprefix("a ").replace("-", " ")
        minutes = MINUTES_BY_WORD[minutes_text] if minutes_text in MINUTES_BY_WORD else int(minutes_text)
        sign = 1 if match["way"] in ("past", "after") else -1
        times.add((_parse_hour(match["hour"]) * 60 + sign * minutes) % DIAL_MINUTES)
    return times


def _parse_hour(text: str) -> int:
    return HOUR_BY_WORD[text] if text in HOUR_BY_WORD else int(text)


def compute_clock_distance(first_minutes: int, second_minutes: int) -> int:
    """Minutes between two times along the shorter way around the dial, 0..360."""
    difference = abs(first_minutes - second_minutes) % DIAL_MINUTES
    return min(difference, DIAL_MINUTES - difference)


def extract_stated_time(answer: str) -> int | None:
    """Minutes after 12 o'clock of the only time in an answer, from the part after "the answer is" if there is one.

    See `extract_stated_answers` for that part. None if there is no time, or several that differ.
    """
    for text in ("\n".join(extract_stated_answers(answer)), "\n".join(extract_final_answers(answer))):
        times = (_find_times(text, STRICT_TIME) or _find_times(text, LENIENT_TIME)) | find_spoken_times(text)
        if times:
            return times.pop() if len(times) == 1 else None
    return None


@dataclass(frozen=True)
class ClockTimeScorer(AnswerScorer):
    """Strict: the answer's HH:MM is within `tolerance_minutes` of a reference on the dial.

    Tolerant: within `tolerant_minutes`. It also reads "3.45", "3h45", "3:5", "3 o'clock" and "quarter to four", and the
    part after "the answer is" comes before the rest. Raises DataError for a reference that is not a time.
    """

    tolerance_minutes: int = 0
    tolerant_minutes: int = 5

    def score_strict(self, answer: str, sample: Sample) -> float:
        """1 if the answer's time is within `tolerance_minutes` of a reference, else 0."""
        return self._score_within(parse_time(answer), sample, self.tolerance_minutes)

    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """1 if the time, in any known format, is within `tolerant_minutes` of a reference, else 0."""
        return self._score_within(extract_stated_time(answer), sample, self.tolerant_minutes)

    def _score_within(self, answer_minutes: int | None, sample: Sample, tolerance: int) -> float:
        is_near = False
        for text in sample.answers:
            reference = parse_time(text)
            if reference is None:
                raise DataError(f"sample {sample.id}: answer {text!r} is not a time such as 03:45")
            is_near |= answer_minutes is not None and compute_clock_distance(answer_minutes, reference) <= tolerance
        return float(is_near)
