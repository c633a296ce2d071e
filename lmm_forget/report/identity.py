"""What a finished job stood on, by content: two jobs of one configuration may have read different files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lmm_forget.store.keys import digest, stop_view

Results = Mapping[str, Any]
FINGERPRINTS = ("fingerprint", "references")


def base_identity(results: Results) -> str:
    """Equal for jobs that started from the same model: weights, configuration, chat template, processor, tokenizer."""
    base = results["base"]
    return digest([base.get("weights_hash"), base.get("fingerprints")])


def asked(results: Results, task: str) -> dict[str, str | None]:
    """What decides a task's scores beside the model: `fingerprint` of the questions, `references`, `scorer` (code)."""
    about = ((results.get("data") or {}).get(task) or {}).get("asked") or {}
    scorer = (results.get("inputs") or {}).get(f"scorer.{task}")
    return {**{name: about.get(name) for name in FINGERPRINTS}, "scorer": scorer}


def content(results: Results) -> str:
    """Equal for jobs that read the same: base model, training data, questions, references and scorers of every task."""
    data = results.get("data") or {}
    trained = {task: (uses.get("taught") or {}).get("fingerprint") for task, uses in data.items()}
    return digest([base_identity(results), trained, {task: asked(results, task) for task in data}])


def job_identity(results: Results) -> str:
    """Equal for one job that lies in two folders: its configuration, seed included, what it read and its stages.

    Looking into a model changes nothing, unless a drift alarm ends stages.
    """
    config = results["config"]
    without_probe = {key: value for key, value in config.items() if key != "probe"}
    stages = [stage.get("key") for stage in results["stages"]]
    return digest([content(results), stages, without_probe, stop_view(config.get("probe"))])


def same(jobs: Iterable[Results], task: str, name: str) -> bool:
    """Whether all jobs that know it have the same `fingerprint`, `references` or `scorer` of a task."""
    found = {asked(results, task)[name] for results in jobs}
    return len(found - {None}) <= 1  # an earlier version's record does not say


def scored_alike(one: Results, two: Results) -> bool:
    """Whether two jobs started from one base and were asked and scored alike in every task that both have."""
    tasks = one["base"]["scores"].keys() & two["base"]["scores"].keys()
    return base_identity(one) == base_identity(two) and all(
        asked(one, task) == asked(two, task) for task in tasks
    )
