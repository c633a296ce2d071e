"""Score answers by VQA accuracy, the agreement with several annotators."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from lmm_forget.tasks.scoring.markup import extract_stated_answers, strip_markup
from lmm_forget.tasks.scoring.numbers import join_number_ranges, normalize_numbers
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.tokenizing import contains_words_without_negation, tokenize_text
from lmm_forget.tasks.scoring.unicode_folding import fold_unicode
from lmm_forget.tasks.scoring.vqa_normalizer import (
    ARTICLES,
    DIGIT_OF_WORD,
    compute_annotator_accuracy,
    normalize_vqa_answer,
)
from lmm_forget.tasks.task import Sample

DIGIT = re.compile(r"\d")
NUMERAL = re.compile(r"[<>≤≥]?=?[-+]? ?[$€£¥₹]? ?\d")
GROUPS = re.compile(r"[-+]?\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d+)?")


def compute_vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy of an answer, with the official normaliser; `references` has one answer of each annotator.

    The score is 1 if three other annotators gave the same answer, or with fewer than four annotators if all others did
    (see `compute_annotator_accuracy`). Texts are folded first (`fold_unicode`). Two different numbers never agree: the
    official normaliser would remove minus signs and decimal commas ("-3.5" is "3.5", "1,5" is "15").
    """
    answer = fold_unicode(answer)
    normalized = normalize_vqa_answer(answer)
    matches = sum(
        normalized == normalize_vqa_answer(reference) and contain_same_numbers(answer, reference)
        for reference in map(fold_unicode, references)
    )
    return _compute_accuracy(matches, len(references))


def contain_same_numbers(first_text: str, second_text: str) -> bool:
    """Whether two texts have the same numbers in order, with signs.

    Texts with different counts of numbers pass, because one may spell a number in words, unless one has a fraction.
    """
    if first_text == second_text or not (DIGIT.search(first_text) and DIGIT.search(second_text)):
        return True
    first = extract_number_tokens(normalize_numbers(first_text))
    second = extract_number_tokens(normalize_numbers(second_text))
    if len(first) != len(second):  # "2 and two"; but "1/2" is not "1 2"
        return not any("/" in str(number) for number in first + second)
    return first == second


def extract_number_tokens(text: str) -> list[Decimal | str]:
    """The numbers of a text in order; what is not a plain number ("1,5", "1/2") is returned as text."""
    return [_parse_number_token(token) for token in tokenize_text(text) if NUMERAL.match(token)]


def _parse_number_token(token: str) -> Decimal | str:
    digits = token.replace(",", "") if GROUPS.fullmatch(token) else token
    try:
        return Decimal(digits)
    except InvalidOperation:
        return digits


def _compute_accuracy(num_matches: int, num_annotators: int) -> float:
    if num_annotators == 1:
        return float(num_matches)
    return compute_annotator_accuracy(num_matches, num_annotators, num_needed=min(3, num_annotators - 1))


@dataclass(frozen=True)
class VQAAccuracyScorer(AnswerScorer):
    """Strict: `compute_vqa_accuracy`; the sample's `answers` are those of all annotators, including repetitions.

    Tolerant: an annotator agrees if the answer contains the words of the annotator's normalised answer.
    """

    def score_strict(self, answer: str, sample: Sample) -> float:
        """VQA accuracy, 0..1."""
        return compute_vqa_accuracy(answer, sample.answers)

    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """VQA accuracy, 0..1, where an answer may contain more than the annotator's words."""
        parts = [
            (normalize_vqa_answer(part).split(), part)
            for part in map(normalize_numbers, extract_stated_answers(answer))
        ]
        num_agreeing = 0
        for reference in sample.answers:
            plain_reference = normalize_numbers(strip_markup(reference))
            reference_words = normalize_vqa_answer(plain_reference).split()
            num_agreeing += any(
                contains_words_without_negation(answer_words, reference_words)
                and _has_whole_numbers(part, plain_reference)
                for answer_words, part in parts
            )
        return _compute_accuracy(num_agreeing, len(sample.answers))


def _has_whole_numbers(answer: str, reference: str) -> bool:
    """Whether a reference has no numbers, or the answer contains it with its numbers whole."""
    return DIGIT.search(reference) is None or contains_words_without_negation(
        _tokenize_for_vqa(answer), _tokenize_for_vqa(reference)
    )


def _tokenize_for_vqa(text: str) -> list[str]:
    return [
        DIGIT_OF_WORD.get(token, token) for token in tokenize_text(join_number_ranges(text)) if token not in ARTICLES
    ]
