"""The composed configuration made concrete: names become tasks, orders become lists, defaults become numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmm_forget.config.checks import GROUPS, check
from lmm_forget.config.composing import register_resolvers, search_path
from lmm_forget.config.hydra_keys import check_hydra
from lmm_forget.config.machine import multiplies_bf16
from lmm_forget.config.messages import one_line
from lmm_forget.config.naming import check_name
from lmm_forget.config.orders import arrange, listed
from lmm_forget.config.probing import check_probe, find_prompts
from lmm_forget.config.tasks import TaskFile, TaskFiles, check_roles
from lmm_forget.errors import ConfigError

FITTED = ("training", "micro_batch", "eval_batch")
"""Keys of a model's YAML that only fill `training` and `hardware`; they stand there once resolved."""


def resolve(
    cfg: DictConfig, folders: Sequence[Path] | None = None, name: str | None = None
) -> dict[str, Any]:
    """The plain dictionary a job runs from: nothing left to look up, every value checked.

    `cfg` is what `compose` (or Hydra) returns, with its `hydra` node; `folders` are searched for task YAMLs (default:
    the configuration's search path, the user's folder first); `name` overrides the sweep's name.
    Under `tasks` stands every task of the sequence and the suite; `sequence.tasks` and `suite.tasks` hold the names
    those tasks are recorded under. `training.learning_rate` is a number, and `training.learning_rate_source` says
    who chose it; `hardware.attention` has moved to `model.attention`. Raises ConfigError.
    """
    register_resolvers()
    try:
        return _resolve(cfg, search_path(cfg) if folders is None else list(folders), name)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error


def _resolve(cfg: DictConfig, folders: list[Path], name: str | None) -> dict[str, Any]:
    hydra = cfg.hydra
    check_hydra(cfg)
    overrides = [str(item) for item in hydra.overrides.task]
    chosen = {str(key): value for key, value in hydra.runtime.choices.items()}
    run = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("hydra", "name")])
    OmegaConf.set_struct(run, False)
    run.name = check_name(cfg.name if name is None else name)

    _require_nodes(run)
    sequence, suite = run.sequence, run.suite
    world = str(run.data.world)
    files = TaskFiles(folders, world)
    taught = [files.load(item) for item in arrange(sequence)]
    asked = [files.load(item) for item in _suite(suite)]
    check_roles(taught, asked)
    _cut_down(suite, asked)
    files.merge_into(run, [*taught, *asked])
    find_prompts(run, files)

    config: dict[str, Any] = OmegaConf.to_container(run, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    config["sequence"]["tasks"] = [task.name for task in taught]
    config["suite"]["tasks"] = [task.name for task in asked]
    if "task" in config["sequence"]:
        config["sequence"]["task"] = config["sequence"]["tasks"][0]
    _require_names(config)
    _learning_rate(config, overrides, chosen, folders)
    suggested = {key: config["model"].pop(key, None) for key in FITTED}
    check(config)
    _settle_hardware(config, suggested["micro_batch"])
    check_probe(config["probe"], config["sequence"]["tasks"])
    config["store"] = os.path.abspath(os.path.expanduser(config["store"]))
    return config


def _suite(suite: Any) -> list[str]:
    names = listed("suite.tasks", suite.get("tasks"))
    if not names:
        raise ConfigError("suite.tasks is empty; forgetting needs at least one held-out benchmark")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"suite.tasks names {', '.join(twice)} more than once")
    return names


def _cut_down(suite: Any, asked: Sequence[TaskFile]) -> None:
    """Give every benchmark of a suite with a `subset` ({samples, seed, by: {benchmark: column}}) its part of it."""
    subset = suite.get("subset")
    if subset is None:
        return
    known = ("samples", "seed", "by")
    odd = (
        [str(key) for key in subset if key not in known]
        if isinstance(subset, Mapping | DictConfig)
        else ["?"]
    )
    if odd:
        raise ConfigError(f"suite.subset.{odd[0]} is unknown; it has: {', '.join(known)}")
    for key, least in (("samples", 1), ("seed", 0)):
        value = subset.get(key, 0 if key == "seed" else None)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"suite.subset.{key}={value} must be a whole number of at least {least}")
    for task in asked:
        groups = subset.get("by") or {}
        if not isinstance(groups, Mapping | DictConfig):
            raise ConfigError(
                f"suite.subset.by={groups} must give benchmarks their column: {{ai2d: category}}"
            )
        task.node.subset = {
            "samples": subset.get("samples"),
            "seed": subset.get("seed", 0),
            "by": groups.get(task.name),
        }


def _learning_rate(
    config: dict[str, Any], overrides: Sequence[str], chosen: Mapping[str, Any], folders: Sequence[Path]
) -> None:
    """Set training.learning_rate and its source: command line > experiment > recipe > model."""
    training, model, recipe = config["training"], config["model"], config["recipe"]
    given = training.get("learning_rate")
    fitted = model.get("training") or {}
    by_recipe = (fitted.get("learning_rates") or {}) if isinstance(fitted, Mapping) else None
    if not isinstance(by_recipe, Mapping):
        raise ConfigError("model.training must hold keys and values, and so must its learning_rates")
    if given is not None:
        typed = any(item.lstrip("+").split("=", 1)[0] == "training.learning_rate" for item in overrides)
        source = (
            "command line"
            if typed
            else "experiment"
            if _sets_rate(chosen.get("experiment"), folders)
            else "training"
        )
    elif recipe.get("learning_rate") is not None:
        given, source = recipe["learning_rate"], "recipe"
    else:
        given, source = by_recipe.get(recipe.get("name"), fitted.get("learning_rate")), "model"
    if given is None:
        raise ConfigError(
            f"no learning rate: the model {model.get('name')} suggests none; set training.learning_rate"
        )
    training["learning_rate"] = given
    training["learning_rate_source"] = source


def _settle_hardware(config: dict[str, Any], micro_batch: Any) -> None:
    """Settle what `hardware` leaves open: `precision`, and on a CPU `micro_batch`, which is the model's there.

    An attention implementation is a property of the loaded model: it moves to `model.attention`.
    """
    hardware = config["hardware"]
    if hardware["attention"] is not None:
        config["model"]["attention"], hardware["attention"] = hardware["attention"], None
    if hardware["precision"] == "auto":
        fast = hardware["accelerator"] == "gpu" or multiplies_bf16()
        hardware["precision"] = "bf16" if fast else "fp32"
    # On a CPU running out of memory ends the process; under fsdp a rank that runs out leaves the others waiting.
    measured = hardware["accelerator"] == "gpu" and hardware["strategy"] != "fsdp"
    if hardware["micro_batch"] == "auto" and not measured:
        if not micro_batch:
            raise ConfigError(
                "hardware.micro_batch=auto: the model suggests none, and on a CPU or with fsdp none is measured; "
                "set a number"
            )
        hardware["micro_batch"] = int(micro_batch)


def _sets_rate(experiment: Any, folders: Sequence[Path]) -> bool:
    """Whether an experiment's own YAML sets the learning rate."""
    for folder in folders:
        path = folder / "experiment" / f"{experiment}.yaml"
        if experiment and path.is_file():
            return OmegaConf.select(OmegaConf.load(path), "training.learning_rate") is not None
    return False


def _require_nodes(run: DictConfig) -> None:
    """Raise ConfigError where a group, or what else has fields, is a list or a single value."""
    for group in (*GROUPS, "sweep"):
        node = run.get(group)
        if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
            raise ConfigError(f"{group}={node} is no {group} configuration; it must hold keys and values")


def _require_names(config: Mapping[str, Any]) -> None:
    for group in GROUPS:
        if group in ("training", "data", "hardware"):
            continue
        node = config.get(group)
        if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
            raise ConfigError(f"the chosen {group} has no name; its YAML must begin with name: …")
