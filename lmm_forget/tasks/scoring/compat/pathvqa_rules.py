"""PathVQA as public code scores it. The paper does not say which of these scores it reports."""

from __future__ import annotations

import math
import re
from collections import Counter

from lmm_forget.tasks.task import Sample

NOT_LETTERS = re.compile("[^a-zA-Z ]")
YES_NO_OPENINGS = (
    *("is ", "are ", "was ", "were ", "does ", "do ", "did ", "can ", "could ", "would ", "should "),
    *("has ", "have ", "had ", "will ", "shall ", "am i "),
)
"""Beginnings of a question that make it a yes/no question."""


def _count_ngrams(text: str, n: int = 1) -> Counter[str]:
    """Counts of word n-grams, after everything but ASCII letters and blanks (so digits too) is deleted."""
    words = NOT_LETTERS.sub("", text).lower().split()
    return Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def score_word_precision(answer: str, sample: Sample) -> float:
    """paper.pathvqa_exact_match: distinct words shared with the reference, divided by all words of the answer.

    Not an exact match: "liver" for "chronic liver inflammation" is 1, "yes, it is" for "yes" a third, and an
    answer without letters ("12") is 0 whatever the reference.
    """
    answer_counts = _count_ngrams(answer)
    if not answer_counts:
        return 0.0
    return max(len(answer_counts.keys() & _count_ngrams(r).keys()) for r in sample.answers) / answer_counts.total()


def score_f1(answer: str, sample: Sample) -> float:
    """paper.pathvqa_f1: every repetition of a shared word counts as a hit, so "liver liver" for "liver" is 1."""
    answer_counts = _count_ngrams(answer)
    return max(_compute_f1(answer_counts, _count_ngrams(reference)) for reference in sample.answers)


def _compute_f1(answer_counts: Counter[str], reference_counts: Counter[str]) -> float:
    hits = sum(count for word, count in answer_counts.items() if word in reference_counts)
    if not hits:
        return 0.0
    missed = sum(count for word, count in reference_counts.items() if word not in answer_counts)
    precision, recall = hits / answer_counts.total(), hits / (hits + missed)
    return 2 * precision * recall / (precision + recall)


def compute_character_bleu(answer: str, reference: str, max_order: int) -> float:
    """BLEU with n-grams up to `max_order` words, with two defects of the public code.

    Lengths are counted in characters, and orders with a precision of zero are skipped. So a longer answer that shares
    no word with the reference scores 1.
    """
    text = answer.strip()
    if not text:
        return 0.0
    brevity = 1.0 if len(text) > len(reference) else math.exp(1 - len(reference) / len(text))
    logs = 0.0
    for size in range(1, max_order + 1):
        answer_ngrams = _count_ngrams(text, size)
        shared = (answer_ngrams & _count_ngrams(reference, size)).total()
        if shared:
            logs += math.log(shared / answer_ngrams.total()) / max_order
    return brevity * math.exp(logs)


def score_bleu1(answer: str, sample: Sample) -> float:
    """paper.pathvqa_bleu1: `compute_character_bleu` with `max_order` 1."""
    return max(compute_character_bleu(answer, reference, 1) for reference in sample.answers)


def score_bleu2(answer: str, sample: Sample) -> float:
    """paper.pathvqa_bleu2: `compute_character_bleu` with `max_order` 2."""
    return max(compute_character_bleu(answer, reference, 2) for reference in sample.answers)


def score_bleu3(answer: str, sample: Sample) -> float:
    """paper.pathvqa_bleu3: `compute_character_bleu` with `max_order` 3."""
    return max(compute_character_bleu(answer, reference, 3) for reference in sample.answers)


def score_yes_no(answer: str, sample: Sample) -> float | None:
    """paper.pathvqa_binary_accuracy: equality up to case if the question begins like a yes/no question, else None.

    "yes." for "yes" is wrong; "is it acute or chronic?" counts as a yes/no question.
    """
    if not sample.question.lower().strip().startswith(YES_NO_OPENINGS):
        return None
    text = answer.strip().lower()
    return float(any(text == reference.lower().strip() for reference in sample.answers))
