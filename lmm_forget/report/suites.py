"""Jobs that held out different benchmarks: their held-out figures over what all of them share, so that they compare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.metrics import build_figures_from_answers
from lmm_forget.report.answers import read_answers, scoring_of
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
    """The sweep, with a note where jobs answered different questions of the same task."""
    asked: dict[str, set[str]] = {}
    for results in sweep.results.values():
        for task, uses in (results.get("data") or {}).items():
            if "asked" in uses:
                asked.setdefault(task, set()).add(str(uses["asked"].get("fingerprint")))
    apart = [task for task, fingerprints in asked.items() if len(fingerprints) > 1]
    if not apart:
        return sweep
    named = ", ".join(apart[:3]) + (f" and {len(apart) - 3} more" if len(apart) > 3 else "")
    told = (
        f"The jobs were not asked the same questions of {named}: part of a difference may be the questions."
    )
    return replace(sweep, notes=[*sweep.notes, told])


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
