"""Word overlap of an answer and a reference: token F1 and BLEU."""

from __future__ import annotations

import math
from collections import Counter

from lmm_forget.tasks.scoring.tokenizing import split_words


def _count_ngrams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def compute_token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, each counted as often as it occurs (Rajpurkar et al. 2016).

    Two texts without words score 1 if they are equal.
    """
    answer_counts, reference_counts = Counter(split_words(answer)), Counter(split_words(reference))
    if not answer_counts or not reference_counts:
        return float(answer.split() == reference.split())
    shared = (answer_counts & reference_counts).total()
    return 2 * shared / (answer_counts.total() + reference_counts.total())


def compute_bleu(answer: str, reference: str, max_order: int) -> float:
    """BLEU with n-grams up to `max_order` words of one answer and one reference (Papineni et al. 2002).

    Lengths are counted in words. If the precision of an order is zero, so is the score. Orders for which the reference
    is too short are left out, so that the reference itself always scores 1. Two texts without words score 1 if they are
    equal.
    """
    answer_words, reference_words = split_words(answer), split_words(reference)
    if not answer_words or not reference_words:
        return float(answer.split() == reference.split())
    orders = range(1, min(max_order, len(reference_words)) + 1)
    logs = 0.0
    for size in orders:
        answer_ngrams = _count_ngrams(answer_words, size)
        shared = (answer_ngrams & _count_ngrams(reference_words, size)).total()
        if not shared:
            return 0.0
        logs += math.log(shared / answer_ngrams.total()) / len(orders)
    return min(1.0, math.exp(logs + min(0.0, 1 - len(reference_words) / len(answer_words))))
