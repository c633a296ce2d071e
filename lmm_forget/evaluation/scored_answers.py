"""What a model said to one question, with its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

LOGIT_TIE_MARGIN = 1e-3
"""Logit gap below which two best tokens may change places through rounding alone."""


@dataclass(frozen=True)
class Answer:
    """One answer and its scores.

    `question` is what the user's turn says, below the sample's system prompt where it has one
    (`Task.format_display_prompt`).
    `value` (strict), `tolerant` and `compat` lie in 0..1, None where a score is not defined. `group` is the
    class that a macro mean averages over, None for plain means. `tokens` counts generated tokens, the end
    token included. `logit_margin` is the smallest difference, in logits, between the best and second-best token along
    the greedy path.
    """

    task: str
    sample_id: str
    image_id: str
    question: str
    references: tuple[str, ...]
    text: str
    value: float
    tolerant: float | None
    compat: float | None
    group: str | None
    tokens: int
    logit_margin: float


def apply_scoring_mode(answers: Sequence[Answer], scoring_mode: str) -> list[Answer]:
    """The answers that count under `data.scoring`, with the score that counts as their `value`.

    "strict": all, as they are; "compat": those for which the public code has a score.
    """
    if scoring_mode == "strict":
        return list(answers)
    return [replace(answer, value=answer.compat) for answer in answers if answer.compat is not None]
