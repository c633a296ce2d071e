"""A model's answer to one question, with its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lmm_forget.errors import DataError
from lmm_forget.store.response_cache import CachedResponse
from lmm_forget.tasks.task import Sample, Task
from lmm_forget.tasks.text_values import get_group_name

LOGIT_TIE_MARGIN = 1e-3
"""Logit margin below which two best tokens may change places through rounding alone."""


@dataclass(frozen=True)
class Answer:
    """One answer and its scores.

    `question` is the text of the user's turn, below the sample's system prompt where it has one
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


def score_response(task: Task, sample: Sample, response: CachedResponse) -> Answer:
    """Score the response to a sample's question; the sample's images are not needed.

    Raises DataError where the scorer gives anything but numbers in 0..1, or the sample lacks its macro group.
    """
    scores = task.score_answer(response.text, sample)
    return Answer(
        task=task.name,
        sample_id=sample.id,
        image_id=sample.image_id,
        question=task.format_display_prompt(sample, for_training=False),
        references=sample.answers,
        text=response.text,
        value=_get_strict_score(task, sample, scores),
        tolerant=scores.get("tolerant"),
        compat=scores.get("compat"),
        group=None if task.macro is None else get_macro_group(task, sample),
        tokens=response.tokens,
        logit_margin=response.logit_margin,
    )


def get_macro_group(task: Task, sample: Sample) -> str:
    """The group of a sample of a macro task. Raises DataError where the sample has none."""
    if task.macro is None or task.macro not in sample.meta:
        raise DataError(f"task {task.name}: sample {sample.id} has no {task.macro!r}, which its macro mean needs")
    return get_group_name(sample.meta[task.macro])


def _get_strict_score(task: Task, sample: Sample, scores: Mapping[str, float | None]) -> float:
    """The strict score. Raises DataError if it, or another score that is not None, is not in 0..1."""
    strict_score = scores.get("value")
    other_scores = [scores.get(name) for name in ("tolerant", "compat")]
    for score in (strict_score, *(other for other in other_scores if other is not None)):
        if score is None or not 0.0 <= score <= 1.0:
            raise DataError(f"task {task.name}: the scorer gave {score} for sample {sample.id}, not a number in 0..1")
    assert strict_score is not None
    return strict_score
