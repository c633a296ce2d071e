"""The question that a sweep answers, and the answer in a sentence or two, from the figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmm_forget.report.experiment_settings import ExperimentSetting, group_settings_by_model
from lmm_forget.report.job_rows import format_points
from lmm_forget.report.setting_differences import SettingDifference


def format_sweep_question(settings: Sequence[ExperimentSetting]) -> str:
    """The question that this sweep can answer."""
    num_tasks = max((len(setting.stage_names) for setting in settings), default=0)
    tasks_text = f"{num_tasks} skills one after another" if num_tasks > 1 else "a new skill"
    recipes = {setting.first_row.label_within_model for setting in settings}
    if len(settings) == 1:
        return f"What did {settings[0].name} learn when trained on {tasks_text}, and what did the model forget?"
    if settings and all(len(group) == 1 for group in group_settings_by_model(settings)):
        return f"What did each model learn when trained on {tasks_text}, and what did it forget?"
    if len(recipes) == 1:
        return (
            f"At which learning rate does {settings[0].first_row.label_within_model} learn {tasks_text} without "
            "forgetting?"
        )
    knowledge_text = "what the model knew" if len(group_settings_by_model(settings)) == 1 else "what each model knew"
    return f"Which recipe learns {tasks_text} without forgetting {knowledge_text}?"


def format_sweep_answer(settings: Sequence[ExperimentSetting], differences: Sequence[SettingDifference] = ()) -> str:
    """The answer in a line or two, for each model; `differences` are those to the setting that forgot least.

    A setting counts as having learned or forgotten if its interval excludes zero, or if the interval of each of its
    jobs does, on the same side (two seeds alone give too wide an interval). It counts as having learned more than
    another if the interval of their difference excludes zero.
    """
    groups = group_settings_by_model(settings)
    if len(groups) < 2:
        return _format_answer_for_model(settings, differences)
    lines = []
    for group in groups:
        short_names = {setting.name: setting.name_within_model for setting in group}
        group_differences = [
            replace(each, name=short_names[each.name], against=short_names[each.against])
            for each in differences
            if each.name in short_names and each.against in short_names
        ]
        group_answer = _format_answer_for_model(
            [replace(setting, name=setting.name_within_model) for setting in group], group_differences
        )
        lines.append(f"{group[0].first_row.model}: {group_answer}")
    return "\n".join(lines)


def _format_answer_for_model(settings: Sequence[ExperimentSetting], differences: Sequence[SettingDifference]) -> str:
    settings_with_figures = [s for s in settings if s.figures["learning"]["value"] is not None]
    if not settings_with_figures:
        return "No job has finished yet."
    settings_with_heldout = [s for s in settings_with_figures if s.figures["final"]["value"] is not None]
    cost_note = "" if settings_with_heldout else "; nothing was held out, so what it cost is unknown"
    settings_with_figures = settings_with_heldout or settings_with_figures
    learned = [s for s in settings_with_figures if _is_beyond_zero(s, "learning", 1)]
    if not learned:
        return _format_nothing_learned(settings_with_figures, is_single=len(settings) == 1, suffix=cost_note)
    if not settings_with_heldout:
        best = max(learned, key=_get_learning)
        return f"{best.name} learned {_format_figure_points(best, 'learning')}{cost_note}."
    if len(settings) == 1:
        (only,) = settings_with_figures
        return f"It learned {_format_figure_points(only, 'learning')} and {_format_heldout_cost(only)}."
    settings_without_forgetting = [s for s in learned if not _is_beyond_zero(s, "final", -1)]
    if settings_without_forgetting:
        best = max(settings_without_forgetting, key=_get_learning)
        sentence = (
            f"{best.name}: it learned {_format_figure_points(best, 'learning')} and {_format_heldout_cost(best)}."
        )
        better_learners = [s for s in learned if _get_learning(s) > _get_learning(best)]
        if better_learners:
            best_learner = max(better_learners, key=_get_learning)
            learning = _format_figure_points(best_learner, "learning")
            sentence += f" {best_learner.name} learned {learning}, but {_format_heldout_cost(best_learner)}."
        return sentence
    return _format_all_forgot(settings_with_figures, learned, differences)


def _format_nothing_learned(settings: Sequence[ExperimentSetting], *, is_single: bool, suffix: str) -> str:
    """The answer if no setting learned more than chance allows; `is_single`: the sweep has only one setting."""
    best = max(settings, key=_get_learning)
    if all(_is_beyond_zero(s, "learning", -1) for s in settings):
        subject = "It" if is_single else "None: all"
        return (
            f"{subject} got worse at what was trained (best: {best.name}, "
            f"{_format_figure_points(best, 'learning')}){suffix}."
        )
    if is_single:
        return (
            f"It learned no more than chance allows ({best.name}: {_format_figure_points(best, 'learning')}){suffix}."
        )
    return (
        f"None learned more than chance allows (best: {best.name}, {_format_figure_points(best, 'learning')}){suffix}."
    )


def _format_all_forgot(
    settings: Sequence[ExperimentSetting],
    learners: Sequence[ExperimentSetting],
    differences: Sequence[SettingDifference],
) -> str:
    """The answer if all `learners` forgot; the other `settings` did not learn beyond chance."""
    least_forgetful, best_learner = max(learners, key=_get_final_heldout), max(learners, key=_get_learning)
    cost = f"{_format_figure_points(least_forgetful, 'learning')} and {_format_heldout_cost(least_forgetful)}"
    if len(learners) == 1 < len(settings):
        return f"None. {least_forgetful.name} alone learned more than chance allows: it learned {cost}."
    among = "" if len(learners) == len(settings) else "Of those that learned, "
    sentence = f"None. {among}{least_forgetful.name} forgot least: it learned {cost}."
    if len(learners) == 1:  # the others did not learn, so their cost says nothing
        return sentence
    if least_forgetful is best_learner:
        return f"{sentence} No other learned more."
    learning_difference = next(
        (d.learning for d in differences if (d.name, d.against) == (best_learner.name, least_forgetful.name)),
        None,
    )
    if learning_difference is not None and learning_difference["low"] is not None and learning_difference["low"] <= 0:
        return f"{sentence} No other learned more beyond chance."
    return (
        f"{sentence} {best_learner.name} learned most, {_format_figure_points(best_learner, 'learning')}, and "
        f"{_format_heldout_cost(best_learner)}."
    )


def find_pareto_front(settings: Sequence[ExperimentSetting]) -> list[ExperimentSetting]:
    """The settings of one model that no other beats in both learning and held-out forgetting, sorted by learning."""
    settings_with_figures = [
        s for s in settings if s.figures["learning"]["value"] is not None and s.figures["final"]["value"] is not None
    ]
    non_dominated = [
        s
        for s in settings_with_figures
        if not any(
            _get_learning(o) >= _get_learning(s)
            and _get_final_heldout(o) >= _get_final_heldout(s)
            and (_get_learning(o), _get_final_heldout(o)) != (_get_learning(s), _get_final_heldout(s))
            for o in settings_with_figures
        )
    ]
    return sorted(non_dominated, key=_get_learning)


def _format_heldout_cost(setting: ExperimentSetting) -> str:
    final = setting.figures["final"]
    if not (_is_beyond_zero(setting, "final", 1) or _is_beyond_zero(setting, "final", -1)):
        return f"kept its held-out mean ({format_points(final['value'])}, within chance)"
    base = setting.heldout_base
    of = "" if base is None or final["value"] > 0 else f" of {base:.1f}"
    verb = "lost" if final["value"] < 0 else "gained"
    return f"{verb} {abs(final['value']):.1f}{of} points on the held-out benchmarks"


def _format_figure_points(setting: ExperimentSetting, figure: str) -> str:
    return f"{format_points(setting.figures[figure]['value'])} points"


def _is_beyond_zero(setting: ExperimentSetting, figure: str, side: int) -> bool:
    """Whether a figure is clearly above (`side` 1) or below (-1) zero; `format_sweep_answer` says when."""

    def is_clear(estimate: Mapping[str, Any]) -> bool:
        end = estimate["low"] if side > 0 else estimate["high"]
        value = estimate["value"] if end is None else end
        return value is not None and side * float(value) > 0

    jobs = [row.figures[figure] for row in setting.rows]
    return is_clear(setting.figures[figure]) or all(is_clear(estimate) for estimate in jobs)


def _get_learning(setting: ExperimentSetting) -> float:
    return float(setting.figures["learning"]["value"])


def _get_final_heldout(setting: ExperimentSetting) -> float:
    return float(setting.figures["final"]["value"])
