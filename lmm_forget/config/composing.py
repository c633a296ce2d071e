"""From a command line to one composed configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from lmm_forget.config.error_messages import format_config_error
from lmm_forget.config.hydra_composition import compose_with_hydra
from lmm_forget.config.overrides import check_overrides
from lmm_forget.errors import ConfigError


def compose_config(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """Compose `run.yaml` with command-line style `overrides`; the result keeps Hydra's own node under `hydra`.

    `config_dir` is a folder of the user's with the same groups (`task/mine.yaml`), as `--config-dir` is on the
    command line. Raises ConfigError, one line, for anything Hydra does not accept.
    """
    checked_overrides = check_overrides(overrides, [] if config_dir is None else [Path(config_dir)])
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"the configuration folder {config_dir} does not exist")
    try:
        return compose_with_hydra(checked_overrides, config_dir)
    except ConfigError:
        raise
    except Exception as error:  # Hydra checks little: what it was given can end in an error of any kind
        raise ConfigError(format_config_error(error, overrides, config_dir)) from error
