"""Convert tables of answers to the score matrices from which figures of merit are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmm_forget.errors import DataError
from lmm_forget.metrics.bootstrap import TaskScores
from lmm_forget.metrics.figures_of_merit import compute_figures_of_merit

AnswerColumns = Mapping[str, Sequence[Any]]  # sample_id, image_id, value, and group where the task is a macro task


def build_task_scores(task: str, stages: Sequence[AnswerColumns]) -> TaskScores:
    """The scores of one task, with samples matched by id across stages.

    `stages[0]` has the answers of the base, `stages[s]` those after stage s. Each has columns of equal length:
    `sample_id`, `image_id`, `value` (0..1) and optionally `group` (None unless the task is a macro task).

    Raises DataError if a column is missing or has another length, an id occurs twice, the stages have different
    samples, or the image or group of a sample changes.
    """
    if not stages:
        raise DataError(f"task {task}: no answers, expected those of the base and of each stage")
    base_answers = _index_rows_by_sample(task, 0, stages[0])
    sample_ids = sorted(base_answers)
    values = np.empty((len(stages), len(sample_ids)))
    for stage, columns in enumerate(stages):
        answers = base_answers if stage == 0 else _index_rows_by_sample(task, stage, columns)
        if answers.keys() != base_answers.keys():
            unmatched_id = min(answers.keys() ^ base_answers.keys())
            raise DataError(
                f"task {task}: sample {unmatched_id} was not answered both at the base and after stage {stage}"
            )
        for column, sample in enumerate(sample_ids):
            if answers[sample][1:] != base_answers[sample][1:]:
                raise DataError(f"task {task}: sample {sample} has another image or group after stage {stage}")
            values[stage, column] = answers[sample][0]
    images = [base_answers[sample][1] for sample in sample_ids]
    groups = [base_answers[sample][2] for sample in sample_ids]
    present_groups = [group for group in groups if group is not None]
    if not present_groups:
        return TaskScores(task, values, images)
    if len(present_groups) < len(groups):
        raise DataError(f"task {task}: sample {sample_ids[groups.index(None)]} has no group, others have")
    return TaskScores(task, values, images, present_groups)


def compute_figures_from_answers(
    trained_tasks: Sequence[str],
    suite: Sequence[str],
    answers: Mapping[str, Sequence[AnswerColumns]],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence_level: float = 0.95,
) -> dict[str, Any]:
    """`compute_figures_of_merit` from tables: `answers[task][stage]` has the columns of `build_task_scores`."""
    scores = {
        task: build_task_scores(task, answers[task])
        for task in dict.fromkeys((*trained_tasks, *suite))
        if task in answers
    }
    return compute_figures_of_merit(
        trained_tasks, suite, scores, num_resamples=num_resamples, seed=seed, confidence_level=confidence_level
    )


def _index_rows_by_sample(task: str, stage: int, columns: AnswerColumns) -> dict[str, tuple[float, str, str | None]]:
    """Sample id -> (value, image id, group) of one stage's answers."""
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
        for sample, value, image, group in zip(ids, columns["value"], columns["image_id"], groups, strict=True)
    }
    if len(rows) != len(ids):
        duplicate_id = next(sample for sample in ids if ids.count(sample) > 1)
        raise DataError(f"task {task}, stage {stage}: sample {duplicate_id} was answered twice")
    return rows
