"""From answers as they lie in tables to the matrices that the figures of merit need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmm_forget.errors import DataError
from lmm_forget.metrics.bootstrap import TaskScores
from lmm_forget.metrics.figures import figures

Columns = Mapping[str, Sequence[Any]]  # sample_id, image_id, value, and group where the task is a macro task


def task_scores_from_answers(task: str, stages: Sequence[Columns]) -> TaskScores:
    """Scores of one task, its samples matched by id across stages.

    stages[0] is the base, stages[s] the answers after stage s; each holds the columns `sample_id`,
    `image_id`, `value` (0..1) and optionally `group` (None for tasks that are no macro task), all of one
    length.

    Raises DataError if a column is missing or short, an id occurs twice, the stages hold different samples,
    or an image or group of a sample changes.
    """
    if not stages:
        raise DataError(f"task {task}: no answers, expected those of the base and of each stage")
    first = _by_id(task, 0, stages[0])
    order = sorted(first)
    values = np.empty((len(stages), len(order)))
    for stage, columns in enumerate(stages):
        answers = first if stage == 0 else _by_id(task, stage, columns)
        if answers.keys() != first.keys():
            odd = min(answers.keys() ^ first.keys())
            raise DataError(
                f"task {task}: sample {odd} was not asked both at the base and after stage {stage}"
            )
        for column, sample in enumerate(order):
            if answers[sample][1:] != first[sample][1:]:
                raise DataError(
                    f"task {task}: sample {sample} has another image or group after stage {stage}"
                )
            values[stage, column] = answers[sample][0]
    images = [first[sample][1] for sample in order]
    groups = [first[sample][2] for sample in order]
    named = [group for group in groups if group is not None]
    if not named:
        return TaskScores(task, values, images)
    if len(named) < len(groups):
        raise DataError(f"task {task}: sample {order[groups.index(None)]} has no group, others have")
    return TaskScores(task, values, images, named)


def build_figures_from_answers(
    taught: Sequence[str],
    suite: Sequence[str],
    answers: Mapping[str, Sequence[Columns]],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """The figures of merit from plain columns: `answers[task][stage]` as in `task_scores_from_answers`."""
    scores = {
        task: task_scores_from_answers(task, answers[task])
        for task in dict.fromkeys((*taught, *suite))
        if task in answers
    }
    return figures(taught, suite, scores, resamples=resamples, seed=seed, level=level)


def _by_id(task: str, stage: int, columns: Columns) -> dict[str, tuple[float, str, str | None]]:
    """{sample id: (value, image id, group)} of one stage's columns."""
    for name in ("sample_id", "image_id", "value"):
        if name not in columns:
            raise DataError(f"task {task}, stage {stage}: the answers have no column {name}")
    ids = [str(sample) for sample in columns["sample_id"]]
    groups: Sequence[Any] | None = columns.get("group")
    groups = [None] * len(ids) if groups is None else groups
    if {len(columns["image_id"]), len(columns["value"]), len(groups)} != {len(ids)}:
        raise DataError(f"task {task}, stage {stage}: the columns of the answers differ in length")
    rows = {
        sample: (float(value), str(image), None if group is None else str(group))
        for sample, value, image, group in zip(
            ids, columns["value"], columns["image_id"], groups, strict=True
        )
    }
    if len(rows) != len(ids):
        twice = next(sample for sample in ids if ids.count(sample) > 1)
        raise DataError(f"task {task}, stage {stage}: sample {twice} was answered twice")
    return rows
