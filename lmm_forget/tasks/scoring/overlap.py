"""How many words an answer shares with a reference: token F1 and BLEU."""

from __future__ import annotations

import math
from collections import Counter

from lmm_forget.tasks.scoring.words import words


def _grams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, each counted as often as it occurs (Rajpurkar et al. 2016).

    Two texts without words score 1 if they are equal.
    """
    said, wanted = Counter(words(answer)), Counter(words(reference))
    if not said or not wanted:
        return float(answer.split() == reference.split())
    shared = (said & wanted).total()
    return 2 * shared / (said.total() + wanted.total())


def bleu(answer: str, reference: str, n: int) -> float:
    """BLEU up to n of one answer against one reference (Papineni et al. 2002), lengths counted in words.

    A precision of zero makes the score zero. Orders for which the reference is too short are left out, so that
    the reference itself always scores 1. Two texts without words score 1 if they are equal.
    """
    said, wanted = words(answer), words(reference)
    if not said or not wanted:
        return float(answer.split() == reference.split())
    orders = range(1, min(n, len(wanted)) + 1)
    logs = 0.0
    for size in orders:
        found = _grams(said, size)
        shared = (found & _grams(wanted, size)).total()
        if not shared:
            return 0.0
        logs += math.log(shared / found.total()) / len(orders)
    return min(1.0, math.exp(logs + min(0.0, 1 - len(wanted) / len(said))))
