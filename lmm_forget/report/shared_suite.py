"""Makes jobs with different suites comparable: held-out figures over the benchmarks that all of them share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.metrics import compute_figures_from_answers
from lmm_forget.report.job_identity import hash_base_model, have_same_fingerprint
from lmm_forget.report.job_results import Sweep
from lmm_forget.report.job_rows import list_heldout_tasks
from lmm_forget.report.stage_answers import get_score_kind, read_answer_columns

_ANSWER_COLUMNS = ("sample_id", "image_id", "value", "group")
_UNDEFINED_ESTIMATE = {"value": None, "low": None, "high": None}


def restrict_to_shared_suite(sweep: Sweep) -> Sweep:
    """A copy of the sweep whose held-out figures cover only the benchmarks that all finished jobs held out.

    They are recomputed from the jobs' answers; a job without readable answers has none. If all jobs held out the same
    benchmarks, figures stay as they are. `notes` of the result say what is left out, and for which tasks questions,
    references or scorers differ between jobs.
    """
    sweep = _add_mismatch_notes(sweep)
    suites = {job: list_heldout_tasks(results) for job, results in sweep.results.items()}
    if len({frozenset(suite) for suite in suites.values()}) <= 1:
        return sweep
    all_tasks = list(dict.fromkeys(task for suite in suites.values() for task in suite))
    shared = [task for task in all_tasks if all(task in suite for suite in suites.values())]
    unshared_text = ", ".join(task for task in all_tasks if task not in shared)
    notes = [
        *sweep.notes,
        f"The jobs held out different benchmarks: held-out figures are over the {len(shared)} that all share, "
        f"without {unshared_text}."
        if shared
        else f"The jobs held out different benchmarks and share none ({unshared_text}): there are no held-out figures.",
    ]
    results = {}
    for job, job_results in sweep.results.items():
        try:
            heldout_figures = _recompute_heldout_figures(sweep, job, job_results, shared)
        except DataError as error:
            notes.append(f"{job}: no held-out figures over the shared benchmarks ({error}).")
            heldout_figures = _make_undefined_figures(len(job_results["stages"]))
        results[job] = {
            **job_results,
            "heldout_tasks": shared,
            "figures": {**job_results["figures"], "heldout_forgetting": heldout_figures},
        }
    return replace(sweep, results=results, notes=notes)


def _add_mismatch_notes(sweep: Sweep) -> Sweep:
    """The sweep with notes on tasks whose questions, references or scorers differ between jobs, and on other bases."""
    fingerprint_sentences = (
        ("fingerprint", "were not evaluated on the same questions of {}: part of a difference may be the questions"),
        (
            "references",
            "were not scored by the same references of {}: part of a difference may be the references",
        ),
        ("scorer", "were not scored by the same code for {}: part of a difference may be the scorer"),
    )
    jobs = sweep.results.values()
    notes = []
    for name, sentence in fingerprint_sentences:
        tasks = {task: [each for each in jobs if task in each["base"]["scores"]] for task in _list_scored_tasks(sweep)}
        mismatched_tasks = [task for task, results in tasks.items() if not have_same_fingerprint(results, task, name)]
        if mismatched_tasks:
            named = ", ".join(mismatched_tasks[:3]) + (
                f" and {len(mismatched_tasks) - 3} more" if len(mismatched_tasks) > 3 else ""
            )
            notes.append(f"The jobs {sentence.format(named)}.")
    bases_by_model: dict[str, set[str]] = {}
    # Records of earlier versions hold the hash of the weights alone.
    have_base_fingerprints = all(each["base"].get("fingerprints") for each in jobs)
    for each in jobs:
        base = hash_base_model(each) if have_base_fingerprints else str(each["base"].get("weights_hash"))
        bases_by_model.setdefault(str((each["config"].get("model") or {}).get("name")), set()).add(base)
    several = [model for model, bases in bases_by_model.items() if len(bases) > 1]
    if several:
        notes.append(f"Not all jobs called {', '.join(several)} started from the same base model.")
    return replace(sweep, notes=[*sweep.notes, *notes]) if notes else sweep


def _list_scored_tasks(sweep: Sweep) -> list[str]:
    return list(dict.fromkeys(task for each in sweep.results.values() for task in each["base"]["scores"]))


def _recompute_heldout_figures(
    sweep: Sweep, job: str, job_results: dict[str, Any], shared_tasks: list[str]
) -> dict[str, Any]:
    trained_tasks = [stage["task"] for stage in job_results["stages"]]
    answers = read_answer_columns(sweep.folders[job], columns=_ANSWER_COLUMNS, score_kind=get_score_kind(job_results))
    tasks = [*dict.fromkeys(trained_tasks), *shared_tasks]
    missing = [task for task in tasks for stage in range(len(trained_tasks) + 1) if (stage, task) not in answers]
    if missing:
        raise DataError(f"no answers to {missing[0]}")
    columns = {task: [answers[stage, task] for stage in range(len(trained_tasks) + 1)] for task in tasks}
    seed = job_results["config"].get("seed") or 0
    return dict(compute_figures_from_answers(trained_tasks, shared_tasks, columns, seed=seed)["heldout_forgetting"])


def _make_undefined_figures(num_stages: int) -> dict[str, Any]:
    return {
        **_UNDEFINED_ESTIMATE,
        "per_stage": [dict(_UNDEFINED_ESTIMATE) for _ in range(num_stages)],
        "worst": {**_UNDEFINED_ESTIMATE, "stage": None},
        "recovery": dict(_UNDEFINED_ESTIMATE),
        "sum": dict(_UNDEFINED_ESTIMATE),
    }
