"""From the resolved `logger` configuration to the job's tracker."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmm_forget.config.schema.hardware_settings import LoggerSettings
from lmm_forget.config.schema.node_reading import read_settings
from lmm_forget.config.schema.setting import list_settings
from lmm_forget.tracking.csv_tracker import CsvTracker
from lmm_forget.tracking.redaction import redact_secrets
from lmm_forget.tracking.tracker import NullTracker, Tracker
from lmm_forget.tracking.wandb_init import WandbInit, require_wandb
from lmm_forget.tracking.wandb_tracker import WandbTracker

LOGGER_NAMES = list_settings(LoggerSettings)["name"].rule.choices


def open_tracker(config: Mapping[str, Any], folder: Path) -> Tracker:
    """The tracker of the job with this resolved configuration and folder; returns without waiting for W&B.

    Raises ConfigError for a `logger` configuration that cannot be used.
    """
    settings = _read_logger_settings(config)
    if settings.name == "none":
        return NullTracker()
    csv_tracker = CsvTracker(folder)
    if settings.name == "csv":
        return csv_tracker
    wandb_init = _build_wandb_init(config, settings, folder)
    require_wandb()
    return WandbTracker(
        wandb_init,
        csv_tracker,
        suite=config["suite"]["tasks"],
        artifacts=settings.artifacts or "records",
        model=config["model"],
        max_milestones=len((config.get("probe") or {}).get("at_steps") or ()),
    )


def read_num_shown_samples(config: Mapping[str, Any]) -> int:
    """How many samples of each task the tracker wants to show. Raises ConfigError for a number that cannot be."""
    settings = _read_logger_settings(config)
    return settings.answers if settings.name == "wandb" else 0


def _read_logger_settings(config: Mapping[str, Any]) -> LoggerSettings:
    return read_settings(LoggerSettings, {"name": "none", **config["logger"]}, "logger")


def _build_wandb_init(config: Mapping[str, Any], settings: LoggerSettings, folder: Path) -> WandbInit:
    config_groups = ("model", "recipe", "sequence")
    tags = [*(str(config[group]["name"]) for group in config_groups), *map(str, settings.tags or ())]
    return WandbInit(
        folder=folder,
        name=folder.resolve().name,
        mode=settings.mode or os.environ.get("WANDB_MODE") or "online",
        timeout_seconds=float(settings.timeout),
        project=str(settings.project or "lmm-forget"),
        entity=settings.entity,
        group=str(settings.group or config["name"]),
        tags=tuple(dict.fromkeys(tags)),
        config=redact_secrets(config),
    )
