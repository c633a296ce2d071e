"""The YAML of a strategy (conf/strategy/NAME.yaml): found by the name that `hardware.strategy` gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmm_forget.config.conf_dirs import list_group_choices
from lmm_forget.config.error_messages import find_yaml_error, format_config_error, suggest_closest
from lmm_forget.errors import ConfigError


def load_strategy_config(name: str, config_dirs: Sequence[Path]) -> dict[str, Any] | None:
    """The content of the first `strategy/<name>.yaml` in `config_dirs`: a `_target_` and its arguments.

    None for `auto`: the number of processes decides. Raises ConfigError listing what exists, or saying what is wrong
    with the file.
    """
    if name == "auto":
        return None
    path = next((p for folder in config_dirs if (p := folder / "strategy" / f"{name}.yaml").is_file()), None)
    if path is None:
        names = ["auto", *list_group_choices("strategy", config_dirs)]
        raise ConfigError(
            f"hardware.strategy={name} is not known; choose one of: {', '.join(names)}{suggest_closest(name, names)}"
        )
    try:
        node: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(find_yaml_error(path) or f"{path}: {format_config_error(error)}") from error
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{path} must name its class: _target_: my_module.MyStrategy")
    return node
