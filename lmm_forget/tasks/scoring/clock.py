"""Times on a 12-hour dial."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmm_forget.errors import DataError
from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.words import normalize
from lmm_forget.tasks.scoring.wrapping import final_parts, stated

DIAL = 12 * 60  # minutes in one turn of the hour hand
STRICT = re.compile(r"(?<![\w:.^/])(?<!(?<!\w)-)(\d{1,2}):(\d{2})(?::\d{2})?(?![\d^]|:\d)")
LENIENT = re.compile(r"(?<![\w:.^/])(?<!(?<!\w)-)(\d{1,2})\s*[:.h]\s*(\d{1,2})(?::\d{2})?(?![\d^]|:\d)")
_HOURS = "twelve one two three four five six seven eight nine ten eleven"
HOUR = {word: i for i, word in enumerate(_HOURS.split())}
_HOUR = rf"(?P<hour>1[0-2]|0?[1-9]|{'|'.join(HOUR)})"
FULL_HOUR = re.compile(rf"(?<![\w:.,^/-]){_HOUR} ?(?:o'? ?clock|[ap]\.? ?m\b)")
PART = re.compile(
    rf"\b(?:(?P<part>half|(?:a )?quarter)|(?P<minutes>[1-5]?\d|five|ten|twenty(?:[- ]five)?)(?: minutes?)?)"
    rf" (?P<way>past|after|to|before|till) {_HOUR}(?![\w:]|\.\d)"
)
MINUTES = {"half": 30, "quarter": 15, "five": 5, "ten": 10, "twenty": 20, "twenty five": 25}


def read_time(text: str, pattern: re.Pattern[str] = STRICT) -> int | None:
    """Minutes after 12 o'clock (0..719) of the one time in a text; None if there is none, or two that differ.

    Hours 0..23 are folded onto the dial, so that 00:30, 12:30 and "12:30 pm" are equal; seconds are ignored.
    """
    found = _times(text, pattern)
    return found.pop() if len(found) == 1 else None


def _times(text: str, pattern: re.Pattern[str]) -> set[int | None]:
    """All different times of a text; None stands for what has the form of a time and is none."""
    return {
        (int(hour) * 60 + int(minute)) % DIAL if int(hour) <= 23 and int(minute) <= 59 else None
        for hour, minute in pattern.findall(normalize(text))
    }


def spoken_times(text: str) -> set[int]:
    """Minutes after 12 o'clock of all times in words ("3 o'clock", "3 PM", "quarter to four")."""
    plain = normalize(text)
    found = {_hour(match["hour"]) * 60 % DIAL for match in FULL_HOUR.finditer(plain)}
    for match in PART.finditer(plain):
        said = (match["part"] or match["minutes"]).removeprefix("a ").replace("-", " ")
        minutes = MINUTES[said] if said in MINUTES else int(said)
        sign = 1 if match["way"] in ("past", "after") else -1
        found.add((_hour(match["hour"]) * 60 + sign * minutes) % DIAL)
    return found


def _hour(text: str) -> int:
    return HOUR[text] if text in HOUR else int(text)


def dial_distance(a: int, b: int) -> int:
    """Minutes between two times the short way round the dial, 0..360."""
    around = abs(a - b) % DIAL
    return min(around, DIAL - around)


def stated_time(answer: str) -> int | None:
    """The one time that an answer states where it says that it answers, else anywhere in it (see `wrapping.stated`)."""
    for text in ("\n".join(stated(answer)), "\n".join(final_parts(answer))):
        found = (_times(text, STRICT) or _times(text, LENIENT)) | spoken_times(text)
        if found:
            return found.pop() if len(found) == 1 else None
    return None


@dataclass(frozen=True)
class ClockTime(AnswerScorer):
    """`value`: the answer's HH:MM lies within `tolerance_minutes` of a reference on the dial.

    `tolerant`: within `tolerant_minutes`; "3.45", "3h45", "3:5", "3 o'clock" and "quarter to four" are read as
    well, and what the answer says is its answer counts before the rest. Raises DataError for
    a sample with a reference that is no time.
    """

    tolerance_minutes: int = 0
    tolerant_minutes: int = 5

    def strict(self, answer: str, sample: Sample) -> float:
        """1 within `tolerance_minutes`."""
        return self._near(read_time(answer), sample, self.tolerance_minutes)

    def tolerant(self, answer: str, sample: Sample) -> float:
        """1 within `tolerant_minutes`, other ways to write a time included."""
        return self._near(stated_time(answer), sample, self.tolerant_minutes)

    def _near(self, said: int | None, sample: Sample, minutes: int) -> float:
        found = False
        for text in sample.answers:
            reference = read_time(text)
            if reference is None:
                raise DataError(f"sample {sample.id}: answer {text!r} is not a time such as 03:45")
            found |= said is not None and dial_distance(said, reference) <= minutes
        return float(found)
