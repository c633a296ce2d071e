"""Scores of read text and read-off figures: ANLS and relaxed accuracy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from rapidfuzz.distance import Levenshtein

from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.numbers import find_numbers
from lmm_forget.tasks.scoring.words import contains, normalize, words


def similarity(answer: str, reference: str) -> float:
    """1 - Levenshtein distance / length of the longer string, both normalised; 1 for two empty strings."""
    a, b = normalize(answer), normalize(reference)
    return float(Levenshtein.normalized_similarity(a, b))


@dataclass(frozen=True)
class ANLS:
    """Average normalised Levenshtein similarity (Biten et al. 2019): the best similarity over the references.

    Below `threshold` it is 0; a score equal to the threshold counts, as in the public DocVQA evaluators.
    `tolerant` is 1 where a reference occurs in the answer as whole words.
    """

    threshold: float = 0.5

    def __call__(self, answer: str, sample: Sample) -> dict[str, float | None]:
        """Score one answer in 0..1."""
        best = max(similarity(answer, reference) for reference in sample.answers)
        value = best if best >= self.threshold else 0.0
        found = words(answer)
        inside = any(contains(found, words(reference)) for reference in sample.answers)
        return {"value": value, "tolerant": max(value, float(inside)), "compat": None}


FIGURE = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+)\s*(%?)")


def read_figure(text: str) -> Decimal | None:
    """The number that a whole text is ("1,250", "-3.5", "5 %" = 0.05), else None."""
    match = FIGURE.fullmatch(normalize(text))
    if match is None:
        return None
    number = Decimal(match[1].replace(",", ""))
    return number / 100 if match[2] else number


def close(answer: Decimal, target: Decimal, tolerance: float) -> bool:
    """Whether two numbers differ by at most `tolerance` times the target; a zero target must be met."""
    return abs(answer - target) <= abs(target) * Decimal(str(tolerance))


@dataclass(frozen=True)
class RelaxedAccuracy:
    """Numbers within `tolerance` of the reference count, anything else must equal it (Methani et al. 2020).

    `value`: a percentage is a hundredth ("5 %" equals 0.05, not 5). `tolerant`: the one number inside a
    sentence counts too, and percent signs are ignored.
    """

    tolerance: float = 0.05

    def __call__(self, answer: str, sample: Sample) -> dict[str, float | None]:
        """Score one answer in 0..1."""
        value = float(any(self._strict(answer, reference) for reference in sample.answers))
        tolerant = float(any(self._tolerant(answer, reference) for reference in sample.answers))
        return {"value": value, "tolerant": max(value, tolerant), "compat": None}

    def _strict(self, answer: str, reference: str) -> bool:
        given, target = read_figure(answer), read_figure(reference)
        if given is None or target is None:
            return normalize(answer) == normalize(reference)
        return close(given, target, self.tolerance)

    def _tolerant(self, answer: str, reference: str) -> bool:
        given, target = set(find_numbers(answer)), set(find_numbers(reference))
        if read_figure(reference) is None or len(target) != 1:
            return contains(words(answer), words(reference))
        a, b = (given.pop() if len(given) == 1 else None), target.pop()
        return a is not None and b is not None and close(a, b, self.tolerance)
