"""What a finished job stood on, by content: two jobs of one configuration may have read different files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lmm_forget.store.keys import hash_json, select_early_stop_config

Results = Mapping[str, Any]
QUESTION_FINGERPRINTS = ("fingerprint", "references")


def hash_base_model(results: Results) -> str:
    """Equal for jobs that started from the same model: weights, configuration, chat template, processor, tokenizer."""
    base = results["base"]
    return hash_json([base.get("weights_hash"), base.get("fingerprints")])


def get_task_fingerprints(results: Results, task: str) -> dict[str, str | None]:
    """What decides a task's scores beside the model: `fingerprint` of the questions, `references`, `scorer` (code)."""
    fingerprints = ((results.get("data") or {}).get(task) or {}).get("evaluated") or {}
    scorer = (results.get("inputs") or {}).get(f"scorer.{task}")
    return {**{name: fingerprints.get(name) for name in QUESTION_FINGERPRINTS}, "scorer": scorer}


def hash_job_inputs(results: Results) -> str:
    """Equal for jobs that read the same: base model, training data, questions, references and scorers of every task."""
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
    """Equal for one job that lies in two folders: its configuration, seed included, what it read and its stages.

    Looking into a model changes nothing, unless a drift alarm ends stages.
    """
    config = results["config"]
    without_probe = {key: value for key, value in config.items() if key != "probe"}
    stages = [stage.get("key") for stage in results["stages"]]
    return hash_json([hash_job_inputs(results), stages, without_probe, select_early_stop_config(config.get("probe"))])


def have_same_fingerprint(job_results: Iterable[Results], task: str, fingerprint_name: str) -> bool:
    """Whether all jobs that know it have the same `fingerprint`, `references` or `scorer` of a task."""
    values = {get_task_fingerprints(results, task)[fingerprint_name] for results in job_results}
    return len(values - {None}) <= 1  # an earlier version's record does not say


def are_scored_alike(first: Results, second: Results) -> bool:
    """Whether two jobs started from one base and were asked and scored alike in every task that both have."""
    tasks = first["base"]["scores"].keys() & second["base"]["scores"].keys()
    return hash_base_model(first) == hash_base_model(second) and all(
        get_task_fingerprints(first, task) == get_task_fingerprints(second, task) for task in tasks
    )
