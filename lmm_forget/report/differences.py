"""Is one setting better than another? Paired differences to the one of its model that forgot least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from scipy.special import stdtr

from lmm_forget.errors import DataError
from lmm_forget.metrics import TaskScores, compare_mean, holm, task_scores_from_answers
from lmm_forget.report.answers import Columns, read_answers, scoring_of
from lmm_forget.report.identity import scored_alike
from lmm_forget.report.load import Sweep
from lmm_forget.report.rows import Row, held_out_tasks
from lmm_forget.report.settings import Setting, by_model, over_jobs

MOST = 24
"""Settings up to which differences are taken."""
_NEEDED = ("sample_id", "image_id", "question", "references", "value", "group")
Answers = Mapping[tuple[int, str], Columns]


@dataclass(frozen=True)
class Difference:
    """One setting minus the reference, in points: {value, low, high, p_value, p_holm} or None where it has no sense.

    `against` is the reference's name. `basis` says what was paired: "questions" of two jobs, or "jobs" of equal seed
    and order.
    """

    name: str
    learning: Mapping[str, Any] | None
    final: Mapping[str, Any] | None
    basis: str
    against: str


def reference(settings: Sequence[Setting]) -> Setting | None:
    """The setting to compare with: the one whose held-out mean fell least; None without two to choose from."""
    known = [s for s in settings if s.figures["final"]["value"] is not None]
    return max(known, key=lambda s: float(s.figures["final"]["value"])) if len(known) > 1 else None


def differences(sweep: Sweep, settings: Sequence[Setting]) -> list[Difference]:
    """Every other setting against the `reference` of its model; empty with more than `MOST` settings.

    Single jobs are paired question by question (bootstrap over images, swap test), settings of several jobs by equal
    seed and order (Student's t over the pairs; the questions of the pair where there is a single one). P-values are
    Holm-corrected over the settings, for each figure.
    """
    if len(settings) > MOST:
        return []
    found = [
        _difference(sweep, best, other)
        for group in by_model(settings)
        if (best := reference(group)) is not None
        for other in group
        if other is not best
    ]
    for figure in ("learning", "final"):
        entries = [
            entry for each in found if (entry := getattr(each, figure)) and entry["p_value"] is not None
        ]
        for entry, p in zip(entries, holm([entry["p_value"] for entry in entries]), strict=True):
            entry["p_holm"] = p
    return found


def _difference(sweep: Sweep, best: Setting, other: Setting) -> Difference:
    if len(best.rows) == len(other.rows) == 1:
        return _on_questions(sweep, (other, best), (best.first, other.first), "questions")
    pairs = [
        (a, b)
        for a in best.rows
        for b in other.rows
        if (a.seed, a.tasks) == (b.seed, b.tasks) and scored_alike(sweep.results[a.job], sweep.results[b.job])
    ]
    if len(pairs) == 1:
        basis = "questions" if pairs[0][0].seed is None else f"questions, seed {pairs[0][0].seed} of both"
        return _on_questions(sweep, (other, best), pairs[0], basis)
    if not pairs:
        return Difference(
            other.name, None, None, "no jobs of equal seed, order, base and references", best.name
        )
    learning, final = (
        _by_job([(a.figures[f], b.figures[f]) for a, b in pairs]) for f in ("learning", "final")
    )
    return Difference(other.name, learning, final, f"{len(pairs)} pairs of jobs", best.name)


def _on_questions(sweep: Sweep, of: tuple[Setting, Setting], pair: tuple[Row, Row], basis: str) -> Difference:
    """`of`: the setting and its reference; `pair`: the jobs of reference and setting."""
    learning, final = _by_question(sweep, *pair)
    alike = learning is not None or final is not None
    setting, best = of
    told = basis if alike else "not the same questions, references or base"
    return Difference(setting.name, learning, final, told, best.name)


def _by_job(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Student's paired comparison of jobs; None with fewer than two pairs."""
    gaps = [b["value"] - a["value"] for a, b in pairs if a["value"] is not None and b["value"] is not None]
    if len(gaps) < 2:
        return None
    estimate = over_jobs([{"value": gap} for gap in gaps])
    if max(gaps) - min(gaps) < 1e-12:
        p = 1.0 if abs(gaps[0]) < 1e-12 else 0.0
    else:
        p = 2.0 * float(stdtr(len(gaps) - 1, -abs(mean(gaps)) / (stdev(gaps) / len(gaps) ** 0.5)))
    return {key: estimate[key] for key in ("value", "low", "high")} | {"p_value": p, "p_holm": None}


def _by_question(sweep: Sweep, one: Row, two: Row) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Learning and final held-out difference of two jobs, on the same questions; None where these differ."""
    if not scored_alike(*(sweep.results[row.job] for row in (one, two))):
        # Each has its own base to fall from, or its own references: scores do not say what was learned or lost.
        return None, None
    scorings = {scoring_of(sweep.results[row.job]) for row in (one, two)}
    if len(scorings) > 1:
        return None, None
    try:
        first, second = (
            read_answers(sweep.folders[row.job], columns=_NEEDED, scoring=min(scorings)) for row in (one, two)
        )
    except DataError:
        return None, None
    held = [
        task
        for task in held_out_tasks(sweep.results[one.job])
        if task in held_out_tasks(sweep.results[two.job])
    ]
    learning = (
        _mean([(task, stage, stage) for stage, task in enumerate(one.tasks, start=1)], first, second)
        if one.tasks == two.tasks
        else None
    )
    final = _mean([(task, len(one.tasks), len(two.tasks)) for task in held], first, second)
    return learning, final


def _questions(columns: Columns) -> dict[str, tuple[str, tuple[str, ...]]]:
    """{sample id: (question, references)}."""
    found = zip(columns["sample_id"], columns["question"], columns["references"], strict=True)
    return {sample: (question, tuple(references)) for sample, question, references in found}


def _mean(places: Sequence[tuple[str, int, int]], first: Answers, second: Answers) -> dict[str, Any] | None:
    try:
        pairs = [(task, first[stage, task], second[later, task]) for task, stage, later in places]
        if any(_questions(one) != _questions(two) for _, one, two in pairs):
            return None
        scores: list[TaskScores] = [task_scores_from_answers(task, [one, two]) for task, one, two in pairs]
        mean = compare_mean(scores)
    except (DataError, KeyError):
        return None
    return {key: mean[key] for key in ("value", "low", "high", "p_value")} | {"p_holm": None}
