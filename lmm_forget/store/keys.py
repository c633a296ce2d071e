"""Keys: what decides a stage's weights, and what decides a model's answers. Equal key means equal work.

A stage's key covers the whole resolved configuration as its training sees it, less the short list below: a new
configuration field counts until somebody lists it here.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

TRAINING_SEMANTICS = 2
"""Raised on purpose when the training code changes what the same configuration computes."""

ANSWER_SEMANTICS = 2
"""Raised on purpose when asking changes what the same model says to the same question (scoring is done on reading)."""

NOT_WEIGHTS: Mapping[str, frozenset[str]] = {
    "": frozenset(
        {
            "name",
            "store",
            "logger",
            "paths",
            "progress",
            "checkpoint_every",
            "snapshot",
            "sweep",
            "objective",
            "suite",
            "probe",
        }
    ),
    "hardware": frozenset(
        {"devices", "nodes", "strategy", "micro_batch", "workers", "threads", "jobs", "eval_batch"}
    ),
    "data": frozenset({"eval_samples", "validation", "scoring"}),
    "training": frozenset({"learning_rate_source"}),
    "model": frozenset({"path"}),
}
"""Fields, by node, that move no weight beyond rounding. The base's own weights are in the key by their hash."""


LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers")
"""Libraries whose major.minor versions count, in keys of stages and of answers alike."""

TASK_PATHS = frozenset({"path", "images_root", "train_path", "streaming"})
"""Fields of a task's node that say where its files lie, and how they are fetched."""


def training_view(config: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The part of a resolved `config` that decides the weights of the stage that teaches `task`.

    Of the sequence only this task is left: equal prefixes of different orders share their stages.
    """
    view = copy.deepcopy(
        {k: v for k, v in config.items() if k not in (*NOT_WEIGHTS[""], "sequence", "tasks")}
    )
    for node, fields in NOT_WEIGHTS.items():
        if node and isinstance(view.get(node), dict):
            view[node] = {k: v for k, v in view[node].items() if k not in fields}
    view["task"] = task_view(config["tasks"][task])
    stop = stop_view(config.get("probe"))
    if stop:
        view["stop"] = stop
    return view


def stop_view(probe: Any) -> dict[str, Any] | None:
    """The part of a resolved `probe` node that moves weights: a drift alarm that ends stages; None without one."""
    if not isinstance(probe, Mapping):
        return None
    bounds = {name: bound for name, bound in (probe.get("stop_when") or {}).items() if bound is not None}
    if not bounds or probe.get("on_alarm") != "stop":
        return None
    kept = ("token_sets", "forced_on", "n", "alarm_n", "alarm_every")
    prompts = [task_view(node) for node in probe["tasks"].values()]
    return {"bounds": bounds, "prompts": prompts, **{name: copy.deepcopy(probe[name]) for name in kept}}


def explain(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The ingredients of two stage keys that differ: (dotted name, value in one, value in the other)."""
    first, second = dict(_leaves(one)), dict(_leaves(other))
    names = sorted(first.keys() | second.keys())
    return [(n, first.get(n), second.get(n)) for n in names if first.get(n, ...) != second.get(n, ...)]


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, node


def task_view(node: Mapping[str, Any]) -> dict[str, Any]:
    """A task's node without where its files lie: their content counts, by the task's fingerprint."""
    return {k: copy.deepcopy(v) for k, v in node.items() if k not in TASK_PATHS}


def stage_key(
    config: Mapping[str, Any],
    task: str,
    *,
    parent: str,
    data: str,
    model: Mapping[str, str],
    versions: Mapping[str, str],
    code: Mapping[str, str | None] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Key of the stage that teaches `task` on the model whose `weights_hash` is `parent`, and its ingredients.

    `data` is the fingerprint of the training set, `model` holds those of the loaded model beside its weights (see
    `models.fingerprint`), `code` those of the user's own task and method where there are any.
    """
    ingredients = {
        "config": training_view(config, task),
        "parent": parent,
        "data": data,
        "model": dict(model),
        "code": {name: found for name, found in (code or {}).items() if found is not None},
        "versions": _counted(versions),
        "training_semantics": TRAINING_SEMANTICS,
    }
    return digest(ingredients), ingredients


def answering_key(
    weights: str, *, model: Mapping[str, str], spec: Mapping[str, Any], versions: Mapping[str, str]
) -> str:
    """Key of everything about asking the model with hash `weights` but the question itself.

    `model` holds the fingerprints of the loaded model beside its weights; of its configuration node `spec`, dtype,
    attention and image budget count.
    """
    return digest(
        {
            "weights": weights,
            "model": dict(model),
            "spec": {name: spec.get(name) for name in ("dtype", "attention", "image")},
            "versions": _counted(versions),
            "answer_semantics": ANSWER_SEMANTICS,
        }
    )


def _counted(versions: Mapping[str, str]) -> dict[str, str]:
    return {name: minor(versions[name]) for name in LIBRARIES}


def path_keys(config: Mapping[str, Any]) -> list[str]:
    """One key per stage of a job, made of configuration alone: equal keys lead to equal stages from the same base.

    They let a sweep be planned before anything is loaded; what data and weights really are, only the stage key knows.
    """
    keys: list[str] = []
    for task in config["sequence"]["tasks"]:
        view = training_view(config, task)
        keys.append(digest([keys[-1] if keys else "", view, config["model"].get("path"), TRAINING_SEMANTICS]))
    return keys


def minor(version: str) -> str:
    """`2.14.1+cpu` -> `2.14`."""
    return ".".join(version.split("+")[0].split(".")[:2])


def digest(value: Any) -> str:
    """SHA-256 (hex, 40 digits) of JSON-serialisable data, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]
