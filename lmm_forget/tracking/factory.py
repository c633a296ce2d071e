"""From the resolved `logger` configuration to the job's tracker."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError
from lmm_forget.tracking.csv_tracker import CsvTracker
from lmm_forget.tracking.redaction import redact_secrets
from lmm_forget.tracking.tracker import NullTracker, Tracker
from lmm_forget.tracking.wandb_init import WandbInit, require_wandb
from lmm_forget.tracking.wandb_tracker import ARTIFACT_CHOICES, WandbTracker

LOGGER_NAMES = ("csv", "wandb", "none")
WANDB_MODES = ("online", "offline", "disabled")


def open_tracker(config: Mapping[str, Any], folder: Path) -> Tracker:
    """The tracker of the job with this resolved configuration and folder; returns without waiting for W&B.

    Raises ConfigError for a `logger` configuration that cannot be used.
    """
    logger_config = config["logger"]
    name = logger_config.get("name") or "none"
    if name not in LOGGER_NAMES:
        raise ConfigError(f"logger={name}: unknown; use one of {', '.join(LOGGER_NAMES)}")
    if name == "none":
        return NullTracker()
    csv_tracker = CsvTracker(folder)
    if name == "csv":
        return csv_tracker
    wandb_init = _build_wandb_init(config, logger_config, folder)
    artifacts = str(_read_choice(logger_config, "artifacts", ARTIFACT_CHOICES, "records"))
    read_num_shown_samples(config)
    require_wandb()
    return WandbTracker(
        wandb_init,
        csv_tracker,
        suite=config["suite"]["tasks"],
        artifacts=artifacts,
        model=config["model"],
        max_milestones=len((config.get("probe") or {}).get("at_steps") or ()),
    )


def read_num_shown_samples(config: Mapping[str, Any]) -> int:
    """Samples of each task that the tracker shows (`logger.answers`; 0 without W&B). Raises ConfigError."""
    logger_config = config["logger"]
    number = logger_config.get("answers", 0)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ConfigError(f"logger.answers={number} cannot be used; it must be a whole number of at least 0")
    return number if logger_config.get("name") == "wandb" else 0


def _build_wandb_init(config: Mapping[str, Any], logger_config: Mapping[str, Any], folder: Path) -> WandbInit:
    seconds = logger_config.get("timeout", 30)
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds > 0:
        raise ConfigError(f"logger.timeout={seconds} cannot be used; it must be a number of seconds above 0")
    config_groups = ("model", "recipe", "sequence")
    tags = [str(config[group]["name"]) for group in config_groups] + [
        str(tag) for tag in logger_config.get("tags") or ()
    ]
    return WandbInit(
        folder=folder,
        name=folder.resolve().name,
        mode=str(_read_choice(logger_config, "mode", WANDB_MODES, os.environ.get("WANDB_MODE") or "online")),
        timeout_seconds=float(seconds),
        project=str(logger_config.get("project") or "lmm-forget"),
        entity=logger_config.get("entity"),
        group=str(logger_config.get("group") or config["name"]),
        tags=tuple(dict.fromkeys(tags)),
        config=redact_secrets(config),
    )


def _read_choice(config: Mapping[str, Any], field: str, allowed: tuple[str, ...], default: str) -> Any:
    value = config.get(field) or default
    if value not in allowed:
        raise ConfigError(f"logger.{field}={value} is not known; choose one of: {', '.join(allowed)}")
    return value
