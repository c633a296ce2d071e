"""Keys: what decides a stage's weights, and what decides a model's answers. Equal key means equal work.

Which field of the configuration counts for what stands with the field, in `lmm_forget.config.schema`: one without an
effect, and one that has no class, counts as changing weights.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from lmm_forget.config.schema.effects import list_fields, select_fields
from lmm_forget.config.schema.hardware_settings import HardwareSettings
from lmm_forget.config.schema.model_settings import ModelSettings
from lmm_forget.config.schema.probe_settings import ProbeSettings
from lmm_forget.config.schema.setting import Effect
from lmm_forget.config.schema.training_settings import TaskSettings

TRAINING_SEMANTICS_VERSION = 2
"""Raised on purpose when the training code changes what the same configuration computes."""

ANSWER_SEMANTICS_VERSION = 2
"""Raised on purpose when asking changes what the same model says to the same question (scoring is done on reading)."""

KEYED_LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers")
"""Libraries whose major.minor versions count, in keys of stages and of answers alike."""


def select_training_config(config: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The part of a resolved `config` that decides the weights of the stage that trains `task`.

    Of the sequence only this task is left: equal prefixes of different orders share their stages.
    """
    view = select_fields(config, Effect.WEIGHTS)
    for group in ("sequence", "tasks", "probe", "callbacks"):
        view.pop(group, None)
    view["task"] = strip_task_paths(config["tasks"][task])
    user_callbacks = select_user_callbacks(config.get("callbacks"))
    if user_callbacks:
        view["callbacks"] = user_callbacks
    stop = select_early_stop_config(config.get("probe"))
    if stop:
        view["stop"] = stop
    return view


def select_user_callbacks(callbacks_config: Any) -> dict[str, Any]:
    """The nodes of `callbacks` that may move weights: all but those of this package."""
    own_package = "lmm_forget.training.callbacks."
    return {
        name: copy.deepcopy(node)
        for name, node in (callbacks_config or {}).items()
        if isinstance(node, Mapping) and not str(node.get("_target_")).startswith(own_package)
    }


def select_early_stop_config(probe_config: Any) -> dict[str, Any] | None:
    """The part of a resolved `probe` node that moves weights: a drift alarm that ends stages; None without one."""
    if not isinstance(probe_config, Mapping):
        return None
    bounds = {name: bound for name, bound in (probe_config.get("stop_when") or {}).items() if bound is not None}
    if not bounds or probe_config.get("on_alarm") != "stop":
        return None
    view = select_fields(probe_config, Effect.WEIGHTS, ProbeSettings)
    for name in ("stop_when", "on_alarm", "prompts", "tasks"):
        view.pop(name, None)
    prompts = [strip_task_paths(node) for node in probe_config["tasks"].values()]
    return {"bounds": bounds, "prompts": prompts, **view}


def select_recorded_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved `config` that equal results share: neither paths nor devices nor logging."""
    view = select_fields(config, Effect.WEIGHTS | Effect.ANSWERS)
    view["hardware"] = select_fields(config["hardware"], Effect.WEIGHTS, HardwareSettings)
    if "probe" in config:
        view["probe"] = copy.deepcopy(config["probe"])
    return view


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
    return select_fields(task_config, Effect.WEIGHTS | Effect.ANSWERS, TaskSettings)


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
    """Key of the stage that trains `task` on the model with hash `parent_weights_hash`, and its ingredients.

    `data_fingerprint` is that of the training set, `model_fingerprints` holds those of the loaded model beside its
    weights (see `models.fingerprint`), `code_fingerprints` those of the user's own task and method, if any.
    `method_state_digest` is that of the state which the stage before handed on, `earlier_data` (task to fingerprint)
    what else the method sees.
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
    """Key of everything that decides an answer of the model with hash `weights_hash`, but the question itself.

    `model_fingerprints` holds those of the loaded model beside its weights; of its node `model_config` count the fields
    that change answers (dtype, attention, image budget).
    """
    return hash_json(
        {
            "weights": weights_hash,
            "model": dict(model_fingerprints),
            "spec": {name: model_config.get(name) for name in list_fields(ModelSettings, Effect.ANSWERS)},
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
