"""Times on a 12-hour dial."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmm_forget.errors import DataError
from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.words import normalize

DIAL = 12 * 60  # minutes in one turn of the hour hand
STRICT = re.compile(r"(?<![\w:.])(\d{1,2}):(\d{2})(?::\d{2})?(?!\d|:\d)")
LENIENT = re.compile(r"(?<![\w:.])(\d{1,2})\s*[:.h]\s*(\d{1,2})(?::\d{2})?(?!\d|:\d)")


def read_time(text: str, pattern: re.Pattern[str] = STRICT) -> int | None:
    """Minutes after 12 o'clock (0..719) of the one time in a text; None if there is none, or two that differ.

    Hours 0..23 are folded onto the dial, so that 00:30, 12:30 and "12:30 pm" are equal; seconds are ignored.
    """
    found = set()
    for hour, minute in pattern.findall(normalize(text)):
        if int(hour) > 23 or int(minute) > 59:
            return None
        found.add((int(hour) * 60 + int(minute)) % DIAL)
    return found.pop() if len(found) == 1 else None


def dial_distance(a: int, b: int) -> int:
    """Minutes between two times the short way round the dial, 0..360."""
    around = abs(a - b) % DIAL
    return min(around, DIAL - around)


@dataclass(frozen=True)
class ClockTime(AnswerScorer):
    """`value`: the answer's HH:MM lies within `tolerance_minutes` of a reference on the dial.

    `tolerant`: within `tolerant_minutes`, and "3.45", "3h45" and "3:5" are read as well. Raises DataError for
    a sample with a reference that is no time.
    """

    tolerance_minutes: int = 0
    tolerant_minutes: int = 5

    def strict(self, answer: str, sample: Sample) -> float:
        """1 within `tolerance_minutes`."""
        return self._near(read_time(answer), sample, self.tolerance_minutes)

    def tolerant(self, answer: str, sample: Sample) -> float:
        """1 within `tolerant_minutes`, other ways to write a time included."""
        said = read_time(answer)
        return self._near(read_time(answer, LENIENT) if said is None else said, sample, self.tolerant_minutes)

    def _near(self, said: int | None, sample: Sample, minutes: int) -> float:
        found = False
        for text in sample.answers:
            reference = read_time(text)
            if reference is None:
                raise DataError(f"sample {sample.id}: answer {text!r} is not a time such as 03:45")
            found |= said is not None and dial_distance(said, reference) <= minutes
        return float(found)
