"""From a resolved `logger` node to whoever follows the job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError
from lmm_forget.tracking.csv_files import CsvFiles
from lmm_forget.tracking.opening import Opening, require_wandb
from lmm_forget.tracking.secrets import scrub
from lmm_forget.tracking.tracker import Null, Tracker
from lmm_forget.tracking.wandb_run import ARTIFACTS, WandbRun

LOGGERS = ("csv", "wandb", "none")
MODES = ("online", "offline", "disabled")


def open_tracker(config: Mapping[str, Any], folder: Path) -> Tracker:
    """Who follows the job with this resolved configuration, whose folder this is; returns without waiting.

    Raises ConfigError for a `logger` node that cannot be used.
    """
    node = config["logger"]
    name = node.get("name") or "none"
    if name not in LOGGERS:
        raise ConfigError(f"logger={name}: unknown; use one of {', '.join(LOGGERS)}")
    if name == "none":
        return Null()
    files = CsvFiles(folder)
    if name == "csv":
        return files
    opening = _opening(config, node, folder)
    artifacts = str(_choice(node, "artifacts", ARTIFACTS, "records"))
    shown(config)
    require_wandb()
    return WandbRun(
        opening,
        files,
        suite=config["suite"]["tasks"],
        artifacts=artifacts,
        model=config["model"],
        milestone_rows=len((config.get("probe") or {}).get("at_steps") or ()),
    )


def shown(config: Mapping[str, Any]) -> int:
    """How many samples of each task the follower wants to show. Raises ConfigError for a number that cannot be."""
    node = config["logger"]
    number = node.get("answers", 0)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ConfigError(f"logger.answers={number} cannot be used; it must be a whole number of at least 0")
    return number if node.get("name") == "wandb" else 0


def _opening(config: Mapping[str, Any], node: Mapping[str, Any], folder: Path) -> Opening:
    seconds = node.get("timeout", 30)
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds > 0:
        raise ConfigError(f"logger.timeout={seconds} cannot be used; it must be a number of seconds above 0")
    choices = ("model", "recipe", "sequence")
    tags = [str(config[group]["name"]) for group in choices] + [str(tag) for tag in node.get("tags") or ()]
    return Opening(
        folder=folder,
        name=folder.resolve().name,
        mode=str(_choice(node, "mode", MODES, os.environ.get("WANDB_MODE") or "online")),
        seconds=float(seconds),
        project=str(node.get("project") or "lmm-forget"),
        entity=node.get("entity"),
        group=str(node.get("group") or config["name"]),
        tags=tuple(dict.fromkeys(tags)),
        config=scrub(config),
    )


def _choice(node: Mapping[str, Any], field: str, allowed: tuple[str, ...], default: str) -> Any:
    value = node.get(field) or default
    if value not in allowed:
        raise ConfigError(f"logger.{field}={value} is not known; choose one of: {', '.join(allowed)}")
    return value
