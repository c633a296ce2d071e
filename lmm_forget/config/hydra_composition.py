"""How Hydra puts the YAML files together, and the interpolations that they may use."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmm_forget.config.conf_dirs import find_conf_dir

HYDRA_VERSION_BASE = "1.3"
"""The Hydra behaviour this package is written for."""


def compose_with_hydra(overrides: Sequence[str], config_dir: str | Path | None = None) -> DictConfig:
    """`run.yaml` with these overrides, as Hydra composes it; raises what Hydra raises, which can be any error."""
    # Hydra's parts are imported where they are used: `--help` needs none of them.
    from hydra import compose
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra
    from hydra.version import setbase

    register_resolvers()
    previous_hydra = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        setbase(HYDRA_VERSION_BASE)
        search = create_config_search_path(str(find_conf_dir()))
        if config_dir is not None:  # as a path, and where --config-dir puts it: an override would have to be quoted
            search_query = SearchPathQuery(provider="schema")
            search.prepend("command-line", f"file://{os.path.abspath(config_dir)}", search_query)
        Hydra.create_main_hydra2(task_name="run", config_search_path=search)
        return compose("run", overrides=list(overrides), return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = previous_hydra


def register_resolvers(sweep_dir: Path | None = None) -> None:
    """Make the interpolations of the packaged YAMLs known to OmegaConf (more than once does no harm).

    `sweep_dir` is where Hydra may write while a sweep is not accepted yet.
    """
    OmegaConf.register_new_resolver("lmm_forget.default_name", _build_default_name, replace=True)
    if sweep_dir is not None or not OmegaConf.has_resolver("lmm_forget.sweep_folder"):
        sweep_path = "multirun" if sweep_dir is None else str(sweep_dir)
        OmegaConf.register_new_resolver("lmm_forget.sweep_folder", lambda: sweep_path, replace=True)
    OmegaConf.register_new_resolver("lmm_forget.by_accelerator", _select_by_accelerator, replace=True)


def _select_by_accelerator(accelerator: str, values: Mapping[str, Any]) -> Any:
    """`values[accelerator]`; what is no accelerator is refused later, in words of its own."""
    return values.get(accelerator, values["gpu"])


def _build_default_name(*, _root_: Any) -> str:
    """The chosen experiment's name, else the model's; a sweep over either gets the plural of what it varies."""
    from hydra.core.hydra_config import HydraConfig

    hydra = OmegaConf.select(_root_, "hydra")
    if hydra is None and HydraConfig.initialized():
        hydra = HydraConfig.get()  # Hydra takes its own node out of the configuration it hands to a task
    if hydra is None:
        return str(_root_.model.name)
    for key in ("experiment", "model"):
        if any(_is_swept(str(override), key) for override in hydra.overrides.task):
            return f"{key}s"
    experiment = OmegaConf.select(hydra, "runtime.choices.experiment")
    return str(experiment or _root_.model.name)


def _is_swept(override: str, key: str) -> bool:
    """Whether a command-line override gives `key` several values."""
    if override.lstrip("+").split("=", 1)[0] != key:
        return False
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return bool(OverridesParser.create().parse_override(override).is_sweep_override())
