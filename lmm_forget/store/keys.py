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

TRAINING_SEMANTICS_VERSION = 2
"""Raised on purpose when the training code changes what the same configuration computes."""

ANSWER_SEMANTICS_VERSION = 2
"""Raised on purpose when asking changes what the same model says to the same question (scoring is done on reading)."""

FIELDS_WITHOUT_WEIGHT_EFFECT: Mapping[str, frozenset[str]] = {
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
        {
            "devices",
            "nodes",
            "strategy",
            "micro_batch_size",
            "num_workers",
            "threads",
            "max_parallel_jobs",
            "eval_batch_size",
        }
    ),
    "data": frozenset({"eval_samples", "validation", "scoring"}),
    "training": frozenset({"learning_rate_source"}),
    "model": frozenset({"path"}),
}
"""Fields, by node, that move no weight beyond rounding. The base's own weights are in the key by their hash."""


KEYED_LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers")
"""Libraries whose major.minor versions count, in keys of stages and of answers alike."""

TASK_PATH_FIELDS = frozenset({"path", "images_root", "train_path", "streaming"})
"""Fields of a task's node that say where its files lie, and how they are fetched."""


def select_training_config(config: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The part of a resolved `config` that decides the weights of the stage that teaches `task`.

    Of the sequence only this task is left: equal prefixes of different orders share their stages.
    """
    view = copy.deepcopy(
        {k: v for k, v in config.items() if k not in (*FIELDS_WITHOUT_WEIGHT_EFFECT[""], "sequence", "tasks")}
    )
    for node, fields in FIELDS_WITHOUT_WEIGHT_EFFECT.items():
        if node and isinstance(view.get(node), dict):
            view[node] = {k: v for k, v in view[node].items() if k not in fields}
    view["task"] = strip_task_paths(config["tasks"][task])
    stop = select_early_stop_config(config.get("probe"))
    if stop:
        view["stop"] = stop
    return view


def select_early_stop_config(probe_config: Any) -> dict[str, Any] | None:
    """The part of a resolved `probe` node that moves weights: a drift alarm that ends stages; None without one."""
    if not isinstance(probe_config, Mapping):
        return None
    bounds = {name: bound for name, bound in (probe_config.get("stop_when") or {}).items() if bound is not None}
    if not bounds or probe_config.get("on_alarm") != "stop":
        return None
    kept_fields = ("token_sets", "forced_on", "n", "alarm_n", "alarm_every")
    prompts = [strip_task_paths(node) for node in probe_config["tasks"].values()]
    return {
        "bounds": bounds,
        "prompts": prompts,
        **{name: copy.deepcopy(probe_config[name]) for name in kept_fields},
    }


def diff_ingredients(
    first_ingredients: Mapping[str, Any], second_ingredients: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """The ingredients of two stage keys that differ: (dotted name, value in one, value in the other)."""
    first, second = dict(_iterate_leaves(first_ingredients)), dict(_iterate_leaves(second_ingredients))
    names = sorted(first.keys() | second.keys())
    return [(n, first.get(n), second.get(n)) for n in names if first.get(n, ...) != second.get(n, ...)]


def _iterate_leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _iterate_leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def strip_task_paths(task_config: Mapping[str, Any]) -> dict[str, Any]:
    """A task's node without where its files lie: their content counts, by the task's fingerprint."""
    return {k: copy.deepcopy(v) for k, v in task_config.items() if k not in TASK_PATH_FIELDS}


def compute_stage_key(
    config: Mapping[str, Any],
    task: str,
    *,
    parent_weights_hash: str,
    data_fingerprint: str,
    model_fingerprints: Mapping[str, str],
    versions: Mapping[str, str],
    code_fingerprints: Mapping[str, str | None] | None = None,
    method_state_digest: str | None = None,
    earlier_data: Mapping[str, str] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Key of the stage that teaches `task` on the model whose `weights_hash` is `parent`, and its ingredients.

    `data` is the fingerprint of the training set, `model` holds those of the loaded model beside its weights (see
    `models.fingerprint`), `code` those of the user's own task and method where there are any. `method_state_digest` is
    that of the state which the stage before handed on, `earlier_data` (task to fingerprint) what else the method sees.
    """
    ingredients = {
        "config": select_training_config(config, task),
        "parent": parent_weights_hash,
        "data": data_fingerprint,
        "model": dict(model_fingerprints),
        "code": {name: code_hash for name, code_hash in (code_fingerprints or {}).items() if code_hash is not None},
        "versions": _select_library_versions(versions),
        "training_semantics": TRAINING_SEMANTICS_VERSION,
    }
    if method_state_digest is not None:
        ingredients["method_state"] = method_state_digest
    if earlier_data:
        ingredients["earlier_data"] = dict(earlier_data)
    return hash_json(ingredients), ingredients


def compute_response_cache_key(
    weights_hash: str,
    *,
    model_fingerprints: Mapping[str, str],
    model_config: Mapping[str, Any],
    versions: Mapping[str, str],
) -> str:
    """Key of everything about asking the model with hash `weights` but the question itself.

    `model` holds the fingerprints of the loaded model beside its weights; of its configuration node `spec`, dtype,
    attention and image budget count.
    """
    return hash_json(
        {
            "weights": weights_hash,
            "model": dict(model_fingerprints),
            "spec": {name: model_config.get(name) for name in ("dtype", "attention", "image")},
            "versions": _select_library_versions(versions),
            "answer_semantics": ANSWER_SEMANTICS_VERSION,
        }
    )


def _select_library_versions(versions: Mapping[str, str]) -> dict[str, str]:
    return {name: truncate_to_minor_version(versions[name]) for name in KEYED_LIBRARIES}


def compute_config_keys(config: Mapping[str, Any]) -> list[str]:
    """One key per stage of a job, made of configuration alone: equal keys lead to equal stages from the same base.

    They let a sweep be planned before anything is loaded; what data and weights really are, only the stage key knows.
    """
    keys: list[str] = []
    for task in config["sequence"]["tasks"]:
        training_config = select_training_config(config, task)
        keys.append(
            hash_json(
                [
                    keys[-1] if keys else "",
                    training_config,
                    config["model"].get("path"),
                    TRAINING_SEMANTICS_VERSION,
                ]
            )
        )
    return keys


def truncate_to_minor_version(version: str) -> str:
    """`2.14.1+cpu` -> `2.14`."""
    return ".".join(version.split("+")[0].split(".")[:2])


def hash_json(value: Any) -> str:
    """SHA-256 (hex, 40 digits) of JSON-serialisable data, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]
