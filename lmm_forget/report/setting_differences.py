"""Paired differences of every setting to the one of its model that forgot least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from scipy.special import stdtr

from lmm_forget.errors import DataError
from lmm_forget.metrics import TaskScores, apply_holm_correction, build_task_scores, compare_mean_scores
from lmm_forget.report.experiment_settings import (
    ExperimentSetting,
    average_over_jobs,
    group_settings_by_model,
)
from lmm_forget.report.job_identity import have_comparable_scores
from lmm_forget.report.job_results import Sweep
from lmm_forget.report.job_rows import JobRow, list_heldout_tasks
from lmm_forget.report.stage_answers import ColumnValues, get_score_kind, read_answer_columns

MAX_SETTINGS = 24
"""With more settings than this, no differences are computed."""
_ANSWER_COLUMNS = ("sample_id", "image_id", "question", "references", "value", "group")
AnswerTables = Mapping[tuple[int, str], ColumnValues]


@dataclass(frozen=True)
class SettingDifference:
    """One setting minus the reference, in points: {value, low, high, p_value, p_holm}, or None if not comparable.

    `against` is the reference's name. `basis` says what was paired: "questions" of two jobs, or pairs of jobs of equal
    seed and order.
    """

    name: str
    learning: Mapping[str, Any] | None
    final: Mapping[str, Any] | None
    basis: str
    against: str


def choose_reference_setting(settings: Sequence[ExperimentSetting]) -> ExperimentSetting | None:
    """The setting whose held-out mean fell least; None with fewer than two settings."""
    candidates = [s for s in settings if s.figures["final"]["value"] is not None]
    return max(candidates, key=lambda s: float(s.figures["final"]["value"])) if len(candidates) > 1 else None


def compare_settings_to_reference(sweep: Sweep, settings: Sequence[ExperimentSetting]) -> list[SettingDifference]:
    """Every other setting against the reference setting of its model; empty with more than `MAX_SETTINGS` settings.

    Single jobs are paired question by question (bootstrap over images, swap test), settings of several jobs by equal
    seed and order (Student's t over the pairs; the questions of the pair where there is a single one). P-values are
    Holm-corrected over the settings, for each figure.
    """
    if len(settings) > MAX_SETTINGS:
        return []
    all_differences = [
        _compare_settings(sweep, best, other)
        for group in group_settings_by_model(settings)
        if (best := choose_reference_setting(group)) is not None
        for other in group
        if other is not best
    ]
    for figure in ("learning", "final"):
        entries = [
            entry for each in all_differences if (entry := getattr(each, figure)) and entry["p_value"] is not None
        ]
        for entry, p in zip(entries, apply_holm_correction([entry["p_value"] for entry in entries]), strict=True):
            entry["p_holm"] = p
    return all_differences


def _compare_settings(
    sweep: Sweep, reference_setting: ExperimentSetting, setting: ExperimentSetting
) -> SettingDifference:
    if len(reference_setting.rows) == len(setting.rows) == 1:
        return _compare_single_jobs(
            sweep, (setting, reference_setting), (reference_setting.first_row, setting.first_row), "questions"
        )
    pairs = [
        (a, b)
        for a in reference_setting.rows
        for b in setting.rows
        if (a.seed, a.tasks) == (b.seed, b.tasks) and have_comparable_scores(sweep.results[a.job], sweep.results[b.job])
    ]
    if len(pairs) == 1:
        basis = "questions" if pairs[0][0].seed is None else f"questions, seed {pairs[0][0].seed} of both"
        return _compare_single_jobs(sweep, (setting, reference_setting), pairs[0], basis)
    if not pairs:
        return SettingDifference(
            setting.name,
            None,
            None,
            "no jobs of equal seed, order, base and references",
            reference_setting.name,
        )
    learning, final = (
        _compare_figure_pairs([(a.figures[f], b.figures[f]) for a, b in pairs]) for f in ("learning", "final")
    )
    return SettingDifference(setting.name, learning, final, f"{len(pairs)} pairs of jobs", reference_setting.name)


def _compare_single_jobs(
    sweep: Sweep,
    settings: tuple[ExperimentSetting, ExperimentSetting],
    job_pair: tuple[JobRow, JobRow],
    basis: str,
) -> SettingDifference:
    """Compare two jobs; `settings` are the setting and its reference, `job_pair` the rows of reference and setting."""
    learning, final = _compare_on_questions(sweep, *job_pair)
    are_comparable = learning is not None or final is not None
    setting, best = settings
    basis_text = basis if are_comparable else "not the same questions, references or base"
    return SettingDifference(setting.name, learning, final, basis_text, best.name)


def _compare_figure_pairs(
    estimate_pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> dict[str, Any] | None:
    """Student's paired t-test over pairs of jobs; None with fewer than two pairs."""
    gaps = [b["value"] - a["value"] for a, b in estimate_pairs if a["value"] is not None and b["value"] is not None]
    if len(gaps) < 2:
        return None
    estimate = average_over_jobs([{"value": gap} for gap in gaps])
    if max(gaps) - min(gaps) < 1e-12:
        p = 1.0 if abs(gaps[0]) < 1e-12 else 0.0
    else:
        p = 2.0 * float(stdtr(len(gaps) - 1, -abs(mean(gaps)) / (stdev(gaps) / len(gaps) ** 0.5)))
    return {key: estimate[key] for key in ("value", "low", "high")} | {"p_value": p, "p_holm": None}


def _compare_on_questions(
    sweep: Sweep, first_row: JobRow, second_row: JobRow
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(learning, final held-out) difference of two jobs on the same questions; None where questions differ."""
    if not have_comparable_scores(*(sweep.results[row.job] for row in (first_row, second_row))):
        # With different bases or references, a difference of scores is no difference in learning or forgetting.
        return None, None
    score_kinds = {get_score_kind(sweep.results[row.job]) for row in (first_row, second_row)}
    if len(score_kinds) > 1:
        return None, None
    try:
        first, second = (
            read_answer_columns(sweep.folders[row.job], columns=_ANSWER_COLUMNS, score_kind=min(score_kinds))
            for row in (first_row, second_row)
        )
    except DataError:
        return None, None
    heldout_tasks = [
        task
        for task in list_heldout_tasks(sweep.results[first_row.job])
        if task in list_heldout_tasks(sweep.results[second_row.job])
    ]
    learning = (
        _compare_mean_on_stages(
            [(task, stage, stage) for stage, task in enumerate(first_row.tasks, start=1)], first, second
        )
        if first_row.tasks == second_row.tasks
        else None
    )
    final = _compare_mean_on_stages(
        [(task, len(first_row.tasks), len(second_row.tasks)) for task in heldout_tasks], first, second
    )
    return learning, final


def _index_questions(columns: ColumnValues) -> dict[str, tuple[str, tuple[str, ...]]]:
    """{sample id: (question, references)}."""
    rows = zip(columns["sample_id"], columns["question"], columns["references"], strict=True)
    return {sample: (question, tuple(references)) for sample, question, references in rows}


def _compare_mean_on_stages(
    task_stages: Sequence[tuple[str, int, int]], first_answers: AnswerTables, second_answers: AnswerTables
) -> dict[str, Any] | None:
    try:
        pairs = [(task, first_answers[stage, task], second_answers[later, task]) for task, stage, later in task_stages]
        if any(_index_questions(first) != _index_questions(second) for _, first, second in pairs):
            return None
        scores: list[TaskScores] = [build_task_scores(task, [first, second]) for task, first, second in pairs]
        comparison = compare_mean_scores(scores)
    except (DataError, KeyError):
        return None
    return {key: comparison[key] for key in ("value", "low", "high", "p_value")} | {"p_holm": None}
