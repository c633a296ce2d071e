"""Two places compared on the questions that both answered: per benchmark, over the suite, and over the targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lmm_forget.errors import DataError
from lmm_forget.metrics import TaskScores, compare_mean, compare_pair, holm
from lmm_forget.report.answers import Columns, read_answers, scoring_of
from lmm_forget.report.identity import asked, base_identity
from lmm_forget.report.places import Place
from lmm_forget.report.rows import held_out_tasks

SCHEMA = 1
_ASKED = ("sample_id", "image_id", "question", "references", "value", "group")


def compare_places(first: Place, second: Place, *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Paired differences, second minus first, in points (docs/compare.md says what every entry means).

    Returns {schema, first, second, benchmarks, heldout, targets, notes}. `benchmarks` maps each task that both answered
    to `compare_pair` with its `role` and `p_holm`; `heldout` and `targets` are `compare_mean` over their tasks, None
    without any. What only one of them was asked is left out, and `notes` says so.

    Raises DataError if they share no question.
    """
    notes: list[str] = []
    scores = shared_scores(first, second, notes)
    if not scores:
        raise DataError(f"{first.name} and {second.name} share no question, so there is nothing to compare")
    if base_identity(first.results) != base_identity(second.results):
        notes.append("the two started from different base models")
    rescored = [task for task in scores if _scorer_differs(task, first, second)]
    if rescored:
        notes.append(f"{', '.join(rescored)}: scored by different code, which may be part of a difference")
    roles = {task: _role(task, first, second) for task in scores}
    benchmarks = {
        task: {"role": roles[task], **compare_pair(each, resamples=resamples, seed=seed)}
        for task, each in scores.items()
    }
    for role in dict.fromkeys(roles.values()):
        family = [entry for entry in benchmarks.values() if entry["role"] == role]
        for entry, p in zip(family, holm([entry["p_value"] for entry in family]), strict=True):
            entry["p_holm"] = p

    def mean(role: str) -> dict[str, Any] | None:
        tasks = [each for task, each in scores.items() if roles[task] == role]
        return compare_mean(tasks, resamples=resamples, seed=seed) if tasks else None

    return {
        "schema": SCHEMA,
        "first": _told(first),
        "second": _told(second),
        "benchmarks": benchmarks,
        "heldout": mean("held-out"),
        "targets": mean("target"),
        "notes": notes,
    }


def shared_scores(first: Place, second: Place, notes: list[str]) -> dict[str, TaskScores]:
    """Scores of the tasks and questions that both answered, row 0 of the first; `notes` hears what was left out."""
    scorings = {scoring_of(each.results) for each in (first, second)}
    scoring = scorings.pop() if len(scorings) == 1 else "strict"
    if scorings:
        notes.append("one of the two counts compat scores and the other strict ones: compared by strict ones")
    answers = (
        read_answers(each.folder, columns=_ASKED, stages=[each.stage], scoring=scoring)
        for each in (first, second)
    )
    one, two = ({task: columns for (_, task), columns in each.items()} for each in answers)
    for here, mine, other in ((first, one, two), (second, two, one)):
        alone = [task for task in mine if task not in other]
        if alone:
            notes.append(f"only {here.name} was asked {', '.join(alone)}: left out")
    found: dict[str, TaskScores] = {}
    for task in (task for task in one if task in two):
        scores = _pair(task, one[task], two[task], notes)
        if scores is not None:
            found[task] = scores
    return found


def _pair(task: str, one: Columns, two: Columns, notes: list[str]) -> TaskScores | None:
    """The shared questions of one task, None if there are none."""
    left, right = _by_id(one), _by_id(two)
    both = [sample for sample in left if sample in right]
    same = [sample for sample in both if left[sample][:-1] == right[sample][:-1]]
    if len(same) < len(both):
        notes.append(
            f"{task}: {len(both) - len(same)} of {len(both)} ids stand for other questions, references or images: "
            "left out"
        )
    if len(both) < max(len(left), len(right)):
        notes.append(
            f"{task}: {len(left)} and {len(right)} questions were asked, {len(both)} by both: the others are left out"
        )
    if not same:
        return None
    values = np.array([[answers[sample][-1] for sample in same] for answers in (left, right)])
    groups = [left[sample][3] for sample in same]
    return TaskScores(
        task, values, [left[sample][2] for sample in same], None if groups[0] is None else groups
    )


def _by_id(columns: Columns) -> dict[str, tuple[Any, ...]]:
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


def _scorer_differs(task: str, first: Place, second: Place) -> bool:
    return asked(first.results, task)["scorer"] != asked(second.results, task)["scorer"]


def _role(task: str, first: Place, second: Place) -> str:
    """Held-out where both held it out, target where one of them taught it, else other."""
    if any(task == stage["task"] for each in (first, second) for stage in each.results["stages"]):
        return "target"
    held = all(task in held_out_tasks(each.results) for each in (first, second))
    return "held-out" if held else "other"


def _told(place: Place) -> dict[str, Any]:
    config: Mapping[str, Any] = place.results["config"]
    return {
        "name": place.name,
        "stage": place.stage,
        "stages": place.last,
        "recipe": config["recipe"]["name"],
        "model": (config.get("model") or {}).get("name"),
        "seed": config.get("seed"),
    }
