"""Jobs that held out different benchmarks: their held-out figures over what all of them share, so that they compare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.metrics import build_figures_from_answers
from lmm_forget.report.answers import read_answers, scoring_of
from lmm_forget.report.identity import base_identity, same
from lmm_forget.report.load import Sweep
from lmm_forget.report.rows import held_out_tasks

_NEEDED = ("sample_id", "image_id", "value", "group")
_NOTHING = {"value": None, "low": None, "high": None}


def shared_suite(sweep: Sweep) -> Sweep:
    """The sweep itself where all finished jobs held out the same; else a copy with held-out figures of the shared ones.

    They are computed anew from the jobs' answers; a job without readable answers has none. `notes` says what was left
    out, and which benchmarks were asked with different questions.
    """
    sweep = _asked_alike(sweep)
    suites = {job: held_out_tasks(results) for job, results in sweep.results.items()}
    if len({frozenset(suite) for suite in suites.values()}) <= 1:
        return sweep
    every = list(dict.fromkeys(task for suite in suites.values() for task in suite))
    shared = [task for task in every if all(task in suite for suite in suites.values())]
    apart = ", ".join(task for task in every if task not in shared)
    notes = [
        *sweep.notes,
        f"The jobs held out different benchmarks: held-out figures are over the {len(shared)} that all share, "
        f"without {apart}."
        if shared
        else f"The jobs held out different benchmarks and share none ({apart}): there are no held-out figures.",
    ]
    results = {}
    for job, found in sweep.results.items():
        try:
            held = _anew(sweep, job, found, shared)
        except DataError as error:
            notes.append(f"{job}: no held-out figures over the shared benchmarks ({error}).")
            held = _undefined(len(found["stages"]))
        results[job] = {
            **found,
            "heldout_tasks": shared,
            "figures": {**found["figures"], "heldout_forgetting": held},
        }
    return replace(sweep, results=results, notes=notes)


def _asked_alike(sweep: Sweep) -> Sweep:
    """The sweep, with a note where jobs answered different questions of a task, or were scored in different ways."""
    told = (
        ("fingerprint", "were not asked the same questions of {}: part of a difference may be the questions"),
        (
            "references",
            "were not scored by the same references of {}: part of a difference may be the references",
        ),
        ("scorer", "were not scored by the same code for {}: part of a difference may be the scorer"),
    )
    jobs = sweep.results.values()
    notes = []
    for name, sentence in told:
        tasks = {task: [each for each in jobs if task in each["base"]["scores"]] for task in _tasks(sweep)}
        apart = [task for task, those in tasks.items() if not same(those, task, name)]
        if apart:
            named = ", ".join(apart[:3]) + (f" and {len(apart) - 3} more" if len(apart) > 3 else "")
            notes.append(f"The jobs {sentence.format(named)}.")
    by_model: dict[str, set[str]] = {}
    told_all = all(
        each["base"].get("fingerprints") for each in jobs
    )  # an earlier version's record tells weights alone
    for each in jobs:
        base = base_identity(each) if told_all else str(each["base"].get("weights_hash"))
        by_model.setdefault(str((each["config"].get("model") or {}).get("name")), set()).add(base)
    several = [model for model, bases in by_model.items() if len(bases) > 1]
    if several:
        notes.append(f"Not all jobs called {', '.join(several)} started from the same base model.")
    return replace(sweep, notes=[*sweep.notes, *notes]) if notes else sweep


def _tasks(sweep: Sweep) -> list[str]:
    return list(dict.fromkeys(task for each in sweep.results.values() for task in each["base"]["scores"]))


def _anew(sweep: Sweep, job: str, found: dict[str, Any], shared: list[str]) -> dict[str, Any]:
    taught = [stage["task"] for stage in found["stages"]]
    answers = read_answers(sweep.folders[job], columns=_NEEDED, scoring=scoring_of(found))
    tasks = [*dict.fromkeys(taught), *shared]
    missing = [task for task in tasks for stage in range(len(taught) + 1) if (stage, task) not in answers]
    if missing:
        raise DataError(f"no answers to {missing[0]}")
    columns = {task: [answers[stage, task] for stage in range(len(taught) + 1)] for task in tasks}
    seed = found["config"].get("seed") or 0
    return dict(build_figures_from_answers(taught, shared, columns, seed=seed)["heldout_forgetting"])


def _undefined(stages: int) -> dict[str, Any]:
    return {
        **_NOTHING,
        "per_stage": [dict(_NOTHING) for _ in range(stages)],
        "worst": {**_NOTHING, "stage": None},
        "recovery": dict(_NOTHING),
        "sum": dict(_NOTHING),
    }
