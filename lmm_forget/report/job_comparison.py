"""Compares two job stages on the questions that both answered: per benchmark, over the suite, over the targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lmm_forget.errors import DataError
from lmm_forget.metrics import TaskScores, apply_holm_correction, compare_mean_scores, compare_task_scores
from lmm_forget.report.job_identity import get_task_fingerprints, hash_base_model
from lmm_forget.report.job_rows import list_heldout_tasks
from lmm_forget.report.job_stages import JobStage
from lmm_forget.report.stage_answers import ColumnValues, get_score_kind, read_answer_columns

COMPARISON_SCHEMA = 1
_ANSWER_COLUMNS = ("sample_id", "image_id", "question", "references", "value", "group")


def compare_job_stages(
    first: JobStage, second: JobStage, *, num_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Paired differences, second minus first, in points (docs/compare.md says what every entry means).

    Returns {schema, first, second, benchmarks, heldout, targets, notes}. "benchmarks" maps each shared task to the
    result of `compare_task_scores` with its role and its Holm-corrected p-value (p_holm); "heldout" and "targets" are
    results of `compare_mean_scores` over their tasks, None without any. Tasks and questions that only one stage was
    evaluated on are left out, which "notes" says.

    Raises DataError if the two share no question.
    """
    notes: list[str] = []
    scores = collect_shared_scores(first, second, notes)
    if not scores:
        raise DataError(f"{first.name} and {second.name} share no question, so there is nothing to compare")
    if hash_base_model(first.results) != hash_base_model(second.results):
        notes.append("the two started from different base models")
    rescored = [task for task in scores if _has_different_scorer(task, first, second)]
    if rescored:
        notes.append(f"{', '.join(rescored)}: scored by different code, which may be part of a difference")
    roles = {task: _determine_role(task, first, second) for task in scores}
    benchmarks = {
        task: {"role": roles[task], **compare_task_scores(each, num_resamples=num_resamples, seed=seed)}
        for task, each in scores.items()
    }
    for role in dict.fromkeys(roles.values()):
        role_entries = [entry for entry in benchmarks.values() if entry["role"] == role]
        for entry, p in zip(
            role_entries, apply_holm_correction([entry["p_value"] for entry in role_entries]), strict=True
        ):
            entry["p_holm"] = p

    def compare_role_mean(role: str) -> dict[str, Any] | None:
        tasks = [each for task, each in scores.items() if roles[task] == role]
        return compare_mean_scores(tasks, num_resamples=num_resamples, seed=seed) if tasks else None

    return {
        "schema": COMPARISON_SCHEMA,
        "first": _describe_job_stage(first),
        "second": _describe_job_stage(second),
        "benchmarks": benchmarks,
        "heldout": compare_role_mean("held-out"),
        "targets": compare_role_mean("target"),
        "notes": notes,
    }


def collect_shared_scores(first: JobStage, second: JobStage, notes: list[str]) -> dict[str, TaskScores]:
    """Scores of the shared questions by task, row 0 of the first; appends to `notes` what is left out."""
    scorings = {get_score_kind(each.results) for each in (first, second)}
    scoring = scorings.pop() if len(scorings) == 1 else "strict"
    if scorings:
        notes.append("one of the two counts compat scores and the other strict ones: compared by strict ones")
    answers = (
        read_answer_columns(each.folder, columns=_ANSWER_COLUMNS, stages=[each.stage], score_kind=scoring)
        for each in (first, second)
    )
    first_columns, second_columns = ({task: columns for (_, task), columns in each.items()} for each in answers)
    for job_stage, columns_here, columns_there in (
        (first, first_columns, second_columns),
        (second, second_columns, first_columns),
    ):
        unshared_tasks = [task for task in columns_here if task not in columns_there]
        if unshared_tasks:
            notes.append(f"only {job_stage.name} was evaluated on {', '.join(unshared_tasks)}: left out")
    scores_by_task: dict[str, TaskScores] = {}
    for task in (task for task in first_columns if task in second_columns):
        scores = _pair_task_scores(task, first_columns[task], second_columns[task], notes)
        if scores is not None:
            scores_by_task[task] = scores
    return scores_by_task


def _pair_task_scores(
    task: str, first_columns: ColumnValues, second_columns: ColumnValues, notes: list[str]
) -> TaskScores | None:
    """The shared questions of one task, None if there are none."""
    left, right = _index_answers_by_sample(first_columns), _index_answers_by_sample(second_columns)
    shared_ids = [sample for sample in left if sample in right]
    matching_ids = [sample for sample in shared_ids if left[sample][:-1] == right[sample][:-1]]
    if len(matching_ids) < len(shared_ids):
        notes.append(
            f"{task}: {len(shared_ids) - len(matching_ids)} of {len(shared_ids)} ids stand for other "
            "questions, references or images: "
            "left out"
        )
    if len(shared_ids) < max(len(left), len(right)):
        notes.append(
            f"{task}: {len(left)} and {len(right)} questions were evaluated, {len(shared_ids)} by both: the "
            "others are left out"
        )
    if not matching_ids:
        return None
    values = np.array([[answers[sample][-1] for sample in matching_ids] for answers in (left, right)])
    groups = [left[sample][3] for sample in matching_ids]
    return TaskScores(task, values, [left[sample][2] for sample in matching_ids], None if groups[0] is None else groups)


def _index_answers_by_sample(columns: ColumnValues) -> dict[str, tuple[Any, ...]]:
    """{sample id: (question, references, image id, group, value)}."""
    return {
        sample: (question, references, image, group, value)
        for sample, question, references, image, group, value in zip(
            columns["sample_id"],
            columns["question"],
            columns["references"],
            columns["image_id"],
            columns["group"],
            columns["value"],
            strict=True,
        )
    }


def _has_different_scorer(task: str, first: JobStage, second: JobStage) -> bool:
    return get_task_fingerprints(first.results, task)["scorer"] != get_task_fingerprints(second.results, task)["scorer"]


def _determine_role(task: str, first: JobStage, second: JobStage) -> str:
    """`target` if one of the two trained the task, `held-out` if both held it out, else `other`."""
    if any(task == stage["task"] for each in (first, second) for stage in each.results["stages"]):
        return "target"
    is_heldout = all(task in list_heldout_tasks(each.results) for each in (first, second))
    return "held-out" if is_heldout else "other"


def _describe_job_stage(job_stage: JobStage) -> dict[str, Any]:
    config: Mapping[str, Any] = job_stage.results["config"]
    return {
        "name": job_stage.name,
        "stage": job_stage.stage,
        "stages": job_stage.last_stage,
        "recipe": config["recipe"]["name"],
        "model": (config.get("model") or {}).get("name"),
        "seed": config.get("seed"),
    }
