"""Hashes of what a finished job read: two jobs of one configuration may have read different files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lmm_forget.store.keys import hash_json, select_early_stop_config

Results = Mapping[str, Any]
QUESTION_FINGERPRINTS = ("fingerprint", "references")


def hash_base_model(results: Results) -> str:
    """Hash of the base model: its weights, configuration, chat template, processor and tokenizer."""
    base = results["base"]
    return hash_json([base.get("weights_hash"), base.get("fingerprints")])


def get_task_fingerprints(results: Results, task: str) -> dict[str, str | None]:
    """Hashes of what decides a task's scores besides the model: questions (fingerprint), references, scorer code."""
    fingerprints = ((results.get("data") or {}).get(task) or {}).get("evaluated") or {}
    scorer = (results.get("inputs") or {}).get(f"scorer.{task}")
    return {**{name: fingerprints.get(name) for name in QUESTION_FINGERPRINTS}, "scorer": scorer}


def hash_job_inputs(results: Results) -> str:
    """Hash of everything a job read: base model, training data; questions, references and scorer of every task."""
    data = results.get("data") or {}
    training_fingerprints = {task: (uses.get("trained") or {}).get("fingerprint") for task, uses in data.items()}
    return hash_json(
        [
            hash_base_model(results),
            training_fingerprints,
            {task: get_task_fingerprints(results, task) for task in data},
        ]
    )


def hash_job(results: Results) -> str:
    """Hash of a job's configuration (seed included), inputs and stages: equal for one job that lies in two folders.

    The probe configuration does not count, because probing changes no result, unless a drift alarm may end stages.
    """
    config = results["config"]
    without_probe = {key: value for key, value in config.items() if key != "probe"}
    stages = [stage.get("key") for stage in results["stages"]]
    return hash_json([hash_job_inputs(results), stages, without_probe, select_early_stop_config(config.get("probe"))])


def have_same_fingerprint(job_results: Iterable[Results], task: str, fingerprint_name: str) -> bool:
    """Whether a task's `fingerprint_name` (fingerprint, references or scorer) is equal in all jobs that record it."""
    values = {get_task_fingerprints(results, task)[fingerprint_name] for results in job_results}
    return len(values - {None}) <= 1  # records of earlier versions lack it


def have_comparable_scores(first: Results, second: Results) -> bool:
    """Whether two jobs share the base model, and questions, references and scorer of every task that both have."""
    tasks = first["base"]["scores"].keys() & second["base"]["scores"].keys()
    return hash_base_model(first) == hash_base_model(second) and all(
        get_task_fingerprints(first, task) == get_task_fingerprints(second, task) for task in tasks
    )
