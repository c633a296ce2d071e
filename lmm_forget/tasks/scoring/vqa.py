"""VQA accuracy as a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.annotators import annotator_accuracy, normalize_vqa
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.words import contains


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Agreement of an answer with the annotators' `references`, one each, with the official normaliser.

    Three others who said the same make it right; with fewer than four annotators all others have to.
    """
    said = normalize_vqa(answer)
    matches = sum(said == normalize_vqa(reference) for reference in references)
    return _accuracy(matches, len(references))


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
        said = normalize_vqa(answer).split()
        inside = (contains(said, normalize_vqa(reference).split()) for reference in sample.answers)
        return _accuracy(sum(inside), len(sample.answers))
