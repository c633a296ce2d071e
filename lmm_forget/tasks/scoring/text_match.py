"""Score text and numbers that are read from images: ANLS, containment and relaxed accuracy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from rapidfuzz.distance import Levenshtein

from lmm_forget.tasks.scoring.exact import contains_any_reference, equals_any_reference, states_any_reference
from lmm_forget.tasks.scoring.markup import strip_markup
from lmm_forget.tasks.scoring.numbers import extract_stated_number, find_numbers, normalize_numbers
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.tokenizing import normalize_text
from lmm_forget.tasks.task import Sample


def compute_string_similarity(answer: str, reference: str) -> float:
    """1 - Levenshtein distance / length of the longer string, both normalised; 1 for two empty strings."""
    a, b = normalize_text(answer), normalize_text(reference)
    return float(Levenshtein.normalized_similarity(a, b))


def compute_anls(answer: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one answer (Biten et al. 2019).

    It is the largest `compute_string_similarity` over the references, or 0 below `threshold`. A similarity equal to
    the threshold counts, as in the public DocVQA evaluators.
    """
    best = max(compute_string_similarity(answer, reference) for reference in references)
    return best if best >= threshold else 0.0


@dataclass(frozen=True)
class ANLSScorer(AnswerScorer):
    """Strict: `compute_anls`. Tolerant: 1 if a reference occurs in the answer as whole words."""

    threshold: float = 0.5

    def score_strict(self, answer: str, sample: Sample) -> float:
        """The similarity to the nearest reference, 0 below the threshold."""
        return compute_anls(answer, sample.answers, self.threshold)

    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """1 if a reference occurs in the answer, else 0."""
        return float(states_any_reference(answer, sample.answers))


@dataclass(frozen=True)
class ContainsTextScorer(AnswerScorer):
    """For questions about text in an image that do not state an answer format (OCRBench; Liu et al. 2024).

    Strict: a reference occurs in the answer as whole words, ignoring case. For a formula (`meta[key]` is one of
    `formulas`), it occurs anywhere in the answer, respecting case but ignoring white space. Tolerant: it occurs
    anywhere, ignoring case and white space.
    """

    key: str = "dataset"
    formulas: tuple[str, ...] = ("HME100k",)

    def score_strict(self, answer: str, sample: Sample) -> float:
        """1 if the answer contains a reference, else 0."""
        if sample.meta.get(self.key) in self.formulas:
            compact_answer = "".join(answer.split())
            return float(
                any(_contains_text("".join(reference.split()), compact_answer) for reference in sample.answers)
            )
        return float(contains_any_reference(answer, sample.answers) or equals_any_reference(answer, sample.answers))

    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """1 if the answer contains a reference's characters in a row, ignoring blanks, else 0."""
        compact_answer = normalize_text(strip_markup(answer)).replace(" ", "")
        return float(
            any(
                _contains_text(normalize_text(reference).replace(" ", ""), compact_answer, respect_sign=True)
                for reference in sample.answers
            )
        )


def _contains_text(part: str, whole: str, respect_sign: bool = False) -> bool:
    """Whether `whole` contains `part`. With `respect_sign`, "5" is not found in "-5"."""
    if not part or not respect_sign or not part[0].isdecimal():
        return bool(part) and part in whole
    return re.search(r"(?<!(?<!\w)-)" + re.escape(part), whole) is not None


NUMBER_PATTERN = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+)\s*(%?)")
PERCENT_PATTERN = re.compile(r"(?<=\d)\s?(?:%|per ?cent\b)", re.IGNORECASE)


def parse_number(text: str) -> Decimal | None:
    """The number that the whole text states ("1,250", "-3.5", "5 %" = 0.05), else None."""
    match = NUMBER_PATTERN.fullmatch(normalize_text(text))
    if match is None:
        return None
    number = Decimal(match[1].replace(",", ""))
    return number / 100 if match[2] else number


def is_close(value: Decimal, target: Decimal, tolerance: float) -> bool:
    """Whether `value` differs from `target` by at most `tolerance` times `target`; zero must be met exactly."""
    return abs(value - target) <= abs(target) * Decimal(str(tolerance))


def is_relaxed_match(answer: str, reference: str, tolerance: float = 0.05) -> bool:
    """Whether two numbers are close (`is_close`), or two texts equal up to case and white space (Methani et al. 2020).

    Percent means hundredths: "5 %" equals 0.05, not 5.
    """
    number, target = parse_number(answer), parse_number(reference)
    if number is None or target is None:
        return normalize_text(answer) == normalize_text(reference)
    return is_close(number, target, tolerance)


@dataclass(frozen=True)
class RelaxedAccuracyScorer(AnswerScorer):
    """Strict: `is_relaxed_match`. Tolerant: also the only number of a sentence; percent signs are ignored."""

    tolerance: float = 0.05

    def score_strict(self, answer: str, sample: Sample) -> float:
        """1 if the answer is a number within the tolerance, or the reference's text, else 0."""
        return float(any(is_relaxed_match(answer, reference, self.tolerance) for reference in sample.answers))

    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """1 if a longer answer states that number or contains that text, else 0."""
        return float(any(self._contains_relaxed_match(answer, reference) for reference in sample.answers))

    def _contains_relaxed_match(self, answer: str, reference: str) -> bool:
        target = set(find_numbers(normalize_numbers(PERCENT_PATTERN.sub("", reference))))
        if parse_number(reference) is None or len(target) != 1:
            return states_any_reference(answer, [reference])
        a, b = extract_stated_number(PERCENT_PATTERN.sub("", answer)), target.pop()
        return a is not None and b is not None and is_close(a, b, self.tolerance)
