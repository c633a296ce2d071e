"""The composed configuration made concrete: names become tasks, orders become lists, defaults become numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmm_forget.config.conf_dirs import list_config_dirs
from lmm_forget.config.cpu_features import has_bf16_instructions
from lmm_forget.config.error_messages import format_config_error
from lmm_forget.config.hydra_composition import register_resolvers
from lmm_forget.config.hydra_settings import check_hydra_settings
from lmm_forget.config.job_names import check_sweep_name
from lmm_forget.config.probe_tasks import resolve_probe_tasks
from lmm_forget.config.renamed import refuse_renamed_keys
from lmm_forget.config.schema.job_config import REQUIRED_GROUPS, check_job_config
from lmm_forget.config.schema.node_reading import read_settings
from lmm_forget.config.schema.training_settings import SubsetSettings
from lmm_forget.config.strategy_files import load_strategy_config
from lmm_forget.config.task_files import TaskFile, TaskFileFinder, check_task_roles
from lmm_forget.config.task_order import order_tasks, parse_name_list
from lmm_forget.errors import ConfigError

MODEL_DEFAULT_KEYS = ("training", "micro_batch_size", "eval_batch_size")
"""Keys of a model's YAML that only fill `training` and `hardware`; they stand there once resolved."""


def resolve_config(
    cfg: DictConfig, config_dirs: Sequence[Path] | None = None, sweep_name: str | None = None
) -> dict[str, Any]:
    """The plain dictionary a job runs from: nothing left to look up, every value checked.

    `cfg` is what `compose_config` (or Hydra) returns, with its `hydra` node; `config_dirs` are searched for task YAMLs
    (default: the configuration's search path, the user's folder first); `sweep_name` overrides the sweep's name.
    `JobConfig.from_resolved` makes a typed object of the result.
    Under `tasks` stands every task of the sequence and the suite; `sequence.tasks` and `suite.tasks` hold the names
    those tasks are recorded under. `training.learning_rate` is a number, and `training.learning_rate_source` says
    who chose it; `hardware.attention` has moved to `model.attention`. Raises ConfigError.
    """
    register_resolvers()
    try:
        return _resolve_composed(cfg, list_config_dirs(cfg) if config_dirs is None else list(config_dirs), sweep_name)
    except OmegaConfBaseException as error:
        raise ConfigError(format_config_error(error)) from error


def _resolve_composed(cfg: DictConfig, config_dirs: list[Path], sweep_name: str | None) -> dict[str, Any]:
    hydra = cfg.hydra
    check_hydra_settings(cfg)
    overrides = [str(item) for item in hydra.overrides.task]
    group_choices = {str(key): value for key, value in hydra.runtime.choices.items()}
    run_config = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("hydra", "name")])
    OmegaConf.set_struct(run_config, False)
    run_config.name = check_sweep_name(cfg.name if sweep_name is None else sweep_name)

    _check_group_nodes(run_config)
    refuse_renamed_keys(run_config)
    sequence, suite = run_config.sequence, run_config.suite
    data_source = str(run_config.data.source)
    task_files = TaskFileFinder(config_dirs, data_source)
    targets = [task_files.load_task_file(item) for item in order_tasks(sequence)]
    benchmarks = [task_files.load_task_file(item) for item in _list_suite_tasks(suite)]
    check_task_roles(targets, benchmarks)
    _apply_suite_subset(suite, benchmarks)
    task_files.merge_into_config(run_config, [*targets, *benchmarks])
    resolve_probe_tasks(run_config, task_files)

    config: dict[str, Any] = OmegaConf.to_container(run_config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    config["sequence"]["tasks"] = [task.name for task in targets]
    config["suite"]["tasks"] = [task.name for task in benchmarks]
    if "task" in config["sequence"]:
        config["sequence"]["task"] = config["sequence"]["tasks"][0]
    _check_group_names(config)
    _resolve_learning_rate(config, overrides, group_choices, config_dirs)
    model_defaults = {key: config["model"].pop(key, None) for key in MODEL_DEFAULT_KEYS}
    check_job_config(config)
    _resolve_hardware(config, model_defaults["micro_batch_size"])
    if "strategy_config" in config["hardware"]:
        raise ConfigError("there is no hardware.strategy_config to set; choose a strategy with hardware.strategy=NAME")
    config["hardware"]["strategy_config"] = load_strategy_config(config["hardware"]["strategy"], config_dirs)
    config["store"] = os.path.abspath(os.path.expanduser(config["store"]))
    return config


def _list_suite_tasks(suite: Any) -> list[str]:
    names = parse_name_list("suite.tasks", suite.get("tasks"))
    if not names:
        raise ConfigError("suite.tasks is empty; forgetting needs at least one held-out benchmark")
    repeated_names = sorted({name for name in names if names.count(name) > 1})
    if repeated_names:
        raise ConfigError(f"suite.tasks names {', '.join(repeated_names)} more than once")
    return names


def _apply_suite_subset(suite: Any, benchmarks: Sequence[TaskFile]) -> None:
    """Give every benchmark of a suite with a `subset` ({samples, seed, by: {benchmark: column}}) its part of it."""
    subset = suite.get("subset")
    if subset is None:
        return
    if not isinstance(subset, DictConfig):
        raise ConfigError(f"suite.subset={subset} cannot be used; it must be keys and values, e.g. {{samples: 250}}")
    settings = read_settings(SubsetSettings, {str(key): subset.get(key) for key in subset}, "suite.subset")
    for task in benchmarks:
        column = (settings.by or {}).get(task.name)
        task.node.subset = {"samples": settings.samples, "seed": settings.seed, "by": column}


def _resolve_learning_rate(
    config: dict[str, Any],
    overrides: Sequence[str],
    group_choices: Mapping[str, Any],
    config_dirs: Sequence[Path],
) -> None:
    """Set training.learning_rate and its source: command line > experiment > recipe > model."""
    training, model, recipe = config["training"], config["model"], config["recipe"]
    learning_rate = training.get("learning_rate")
    model_training = model.get("training") or {}
    rates_by_recipe = (model_training.get("learning_rates") or {}) if isinstance(model_training, Mapping) else None
    if not isinstance(rates_by_recipe, Mapping):
        raise ConfigError("model.training must hold keys and values, and so must its learning_rates")
    if learning_rate is not None:
        is_on_command_line = any(item.lstrip("+").split("=", 1)[0] == "training.learning_rate" for item in overrides)
        source = (
            "command line"
            if is_on_command_line
            else "experiment"
            if _has_learning_rate(group_choices.get("experiment"), config_dirs)
            else "training"
        )
    elif recipe.get("learning_rate") is not None:
        learning_rate, source = recipe["learning_rate"], "recipe"
    else:
        learning_rate, source = (
            rates_by_recipe.get(recipe.get("name"), model_training.get("learning_rate")),
            "model",
        )
    if learning_rate is None:
        raise ConfigError(f"no learning rate: the model {model.get('name')} suggests none; set training.learning_rate")
    training["learning_rate"] = learning_rate
    training["learning_rate_source"] = source


def _resolve_hardware(config: dict[str, Any], model_micro_batch: Any) -> None:
    """Settle what `hardware` leaves open: `precision`, and on a CPU `micro_batch`, which is the model's there.

    An attention implementation is a property of the loaded model: it moves to `model.attention`.
    """
    hardware = config["hardware"]
    if hardware["attention"] is not None:
        config["model"]["attention"], hardware["attention"] = hardware["attention"], None
    if hardware["precision"] == "auto":
        has_fast_bf16 = hardware["accelerator"] == "gpu" or has_bf16_instructions()
        hardware["precision"] = "bf16" if has_fast_bf16 else "fp32"
    # On a CPU running out of memory ends the process; under fsdp a rank that runs out leaves the others waiting.
    is_measured_later = hardware["accelerator"] == "gpu" and hardware["strategy"] != "fsdp"
    if hardware["micro_batch_size"] == "auto" and not is_measured_later:
        if not model_micro_batch:
            raise ConfigError(
                "hardware.micro_batch_size=auto: the model suggests none, and on a CPU or with fsdp none is measured; "
                "set a number"
            )
        hardware["micro_batch_size"] = int(model_micro_batch)


def _has_learning_rate(experiment: Any, config_dirs: Sequence[Path]) -> bool:
    """Whether an experiment's own YAML sets the learning rate."""
    for folder in config_dirs:
        path = folder / "experiment" / f"{experiment}.yaml"
        if experiment and path.is_file():
            return OmegaConf.select(OmegaConf.load(path), "training.learning_rate") is not None
    return False


def _check_group_nodes(run_config: DictConfig) -> None:
    """Raise ConfigError where a group, or what else has fields, is a list or a single value."""
    for group in (*REQUIRED_GROUPS, "sweep"):
        node = run_config.get(group)
        if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
            raise ConfigError(f"{group}={node} is no {group} configuration; it must hold keys and values")


def _check_group_names(config: Mapping[str, Any]) -> None:
    for group in REQUIRED_GROUPS:
        if group in ("training", "data", "hardware", "callbacks"):
            continue
        node = config.get(group)
        if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
            raise ConfigError(f"the chosen {group} has no name; its YAML must begin with name: …")
