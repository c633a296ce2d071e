"""Answers of two runs that should be equal, compared by their texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmm_forget.evaluation.scored_answers import LOGIT_TIE_MARGIN, Answer


@dataclass(frozen=True)
class Flips:
    """How many of `total` answers have another text: `near_ties` of them excused by a gap below the limit."""

    total: int
    near_ties: int
    unexplained: tuple[str, ...]

    @property
    def count(self) -> int:
        """All answers whose text differs."""
        return self.near_ties + len(self.unexplained)


def flips(first: Sequence[Answer], second: Sequence[Answer], near_tie: float = LOGIT_TIE_MARGIN) -> Flips:
    """Compare the texts of two runs over the same samples; unexplained flips are given as `task/sample id`.

    Raises ValueError if the two do not answer the same samples in the same order.
    """
    near, unexplained = 0, []
    for a, b in zip(first, second, strict=True):
        if (a.task, a.sample_id) != (b.task, b.sample_id):
            raise ValueError(f"answers to {a.task}/{a.sample_id} and {b.task}/{b.sample_id} cannot be compared")
        if a.text == b.text:
            continue
        if min(a.logit_margin, b.logit_margin) < near_tie:
            near += 1
        else:
            unexplained.append(f"{a.task}/{a.sample_id}")
    return Flips(total=len(first), near_ties=near, unexplained=tuple(unexplained))
