"""VQA accuracy as a scorer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.annotators import ARTICLES, DIGIT_OF_WORD, annotator_accuracy, normalize_vqa
from lmm_forget.tasks.scoring.folding import fold
from lmm_forget.tasks.scoring.numbers import plain_figures, whole_ranges
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.words import affirms, tokens
from lmm_forget.tasks.scoring.wrapping import stated, unwrap

DIGIT = re.compile(r"\d")
NUMERAL = re.compile(r"[<>≤≥]?=?[-+]? ?[$€£¥₹]? ?\d")
GROUPS = re.compile(r"[-+]?\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d+)?")


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Agreement of an answer with the annotators' `references`, one each, with the official normaliser.

    Three others who said the same make it right; with fewer than four annotators all others have to. Texts are
    folded first (`folding.fold`), and two different numbers never agree: the official normaliser alone drops minus
    signs and decimal commas ("-3.5" is "3.5", "1,5" is "15").
    """
    answer = fold(answer)
    said = normalize_vqa(answer)
    matches = sum(
        said == normalize_vqa(reference) and same_figures(answer, reference)
        for reference in map(fold, references)
    )
    return _accuracy(matches, len(references))


def same_figures(a: str, b: str) -> bool:
    """Whether two texts have the same figures in order, signs included; unlike counts agree without fractions."""
    if a == b or not (DIGIT.search(a) and DIGIT.search(b)):
        return True
    first, second = figures(plain_figures(a)), figures(plain_figures(b))
    if len(first) != len(second):  # "2 and two"; but "1/2" is not "1 2"
        return not any("/" in str(figure) for figure in first + second)
    return first == second


def figures(text: str) -> list[Decimal | str]:
    """The figures of a text in order, each whole; one that is no plain number ("1,5", "1/2") as its text."""
    return [_value(token) for token in tokens(text) if NUMERAL.match(token)]


def _value(figure: str) -> Decimal | str:
    plain = figure.replace(",", "") if GROUPS.fullmatch(figure) else figure
    try:
        return Decimal(plain)
    except InvalidOperation:
        return plain


def _accuracy(matches: int, annotators: int) -> float:
    if annotators == 1:
        return float(matches)
    return annotator_accuracy(matches, annotators, needed=min(3, annotators - 1))


@dataclass(frozen=True)
class VQAAccuracy(AnswerScorer):
    """`value`: see `vqa_accuracy`; a sample's `answers` are those of all annotators, repetitions kept.

    `tolerant`: an annotator agrees where the words of the normalised reference stand in the answer.
    """

    def strict(self, answer: str, sample: Sample) -> float:
        """Share of annotators that agree, in the sense of VQA accuracy."""
        return vqa_accuracy(answer, sample.answers)

    def tolerant(self, answer: str, sample: Sample) -> float:
        """The same, where an answer may say more than the annotator did."""
        parts = [(normalize_vqa(part).split(), part) for part in map(plain_figures, stated(answer))]
        agree = 0
        for reference in sample.answers:
            plain = plain_figures(unwrap(reference))
            wanted = normalize_vqa(plain).split()
            agree += any(affirms(said, wanted) and _figures_whole(part, plain) for said, part in parts)
        return _accuracy(agree, len(sample.answers))


def _figures_whole(answer: str, reference: str) -> bool:
    """Whether an answer has the figures of a reference that it holds, if any, as whole numbers."""
    return DIGIT.search(reference) is None or affirms(_tokens(answer), _tokens(reference))


def _tokens(text: str) -> list[str]:
    return [DIGIT_OF_WORD.get(token, token) for token in tokens(whole_ranges(text)) if token not in ARTICLES]
