"""Where figures go while a job trains: CSV files in the job's folder, or one W&B run per job."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from lmm_forget.errors import ConfigError

LOGGERS = ("csv", "wandb", "none")
TRAINING_COLUMNS = ("task", "step", "loss", "learning_rate", "grad_norm", "samples_per_s")
STAGE_COLUMNS = ("stage", "metric", "value")


class CsvFiles(Logger):
    """Appends to two files in the job's folder, so that a stopped job loses nothing.

    `training.csv` has a row per logged optimizer step (columns `TRAINING_COLUMNS`), `stages.csv` a row per
    figure after each stage (stage 0 is the base model). A stage that is run again appends its rows again: the
    last count.
    """

    def __init__(self, folder: Path) -> None:
        """Write into `folder`, which is made when the first row comes."""
        super().__init__()
        self._folder = folder

    @property
    def name(self) -> str:
        """Kind of logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one version: files are appended to."""
        return "0"

    @property
    def save_dir(self) -> str:
        """The job's folder."""
        return str(self._folder)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved configuration lies beside the files as job.yaml."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one training row; `metrics` may hold `task` besides the figures."""
        self._append("training.csv", TRAINING_COLUMNS, [{**metrics, "step": step}])

    def log_stage(self, stage: int, metrics: Mapping[str, float]) -> None:
        """Append one row per figure of a stage."""
        rows = [{"stage": stage, "metric": name, "value": value} for name, value in metrics.items()]
        self._append("stages.csv", STAGE_COLUMNS, rows)

    def _append(self, name: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / name, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)


def build_logger(cfg: Mapping[str, Any], job_dir: Path, run_id: str) -> Logger | None:
    """The logger of one job from its resolved `logger` node; `name` is one of `LOGGERS`.

    For `wandb` the node may hold `project`, `entity`, `group` (the sweep), `job_type`, `mode` (online,
    offline, disabled), `tags` and `config` (recorded with the run). `run_id` names the run, and a job that is
    run again goes on in it. Raises ConfigError for an unknown name or mode.
    """
    name = cfg.get("name") or "none"
    if name not in LOGGERS:
        raise ConfigError(f"logger={name}: unknown; use one of {', '.join(LOGGERS)}")
    if name == "none":
        return None
    if name == "csv":
        return CsvFiles(job_dir)
    return _wandb(cfg, job_dir, run_id)


def _wandb(cfg: Mapping[str, Any], job_dir: Path, run_id: str) -> WandbLogger:
    modes = ("online", "offline", "disabled")
    mode: Any = cfg.get("mode") or os.environ.get("WANDB_MODE") or "online"
    if mode not in modes:
        raise ConfigError(f"logger.mode={mode}: unknown; use one of {', '.join(modes)}")
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "logger=wandb needs the package wandb: pip install wandb, or use logger=csv"
        ) from None
    job_dir.mkdir(parents=True, exist_ok=True)
    tags = cfg.get("tags")
    try:
        run = wandb.init(
            id=_wandb_id(run_id),
            name=run_id.rpartition("/")[2],
            dir=str(job_dir),
            project=cfg.get("project") or "lmm-forget",
            entity=cfg.get("entity"),
            group=cfg.get("group"),
            job_type=cfg.get("job_type"),
            tags=list(tags) if tags else None,
            config=dict(cfg.get("config") or {}),
            mode=mode,
            resume=None if mode == "offline" else "allow",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
    except wandb.Error as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"logger=wandb: {reason}; log in, or use logger.mode=offline") from None
    run.define_metric("stage")
    return WandbLogger(experiment=run)


def _wandb_id(run_id: str) -> str:
    """`run_id` without the characters that W&B refuses, at most 128 long."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in run_id)[-128:]


def log_training(logger: Logger | None, task: str, step: int, figures: Mapping[str, float]) -> None:
    """Record figures of optimizer step `step` (from 1) of the stage that teaches `task`.

    W&B gets one curve per task, `train/<task>/loss` and so on, each over its own `train/<task>/step`.
    """
    if isinstance(logger, WandbLogger):
        axis = f"train/{task}/step"
        run = logger.experiment
        if step == 1:
            run.define_metric(f"train/{task}/*", step_metric=axis)
        run.log({axis: step, **{f"train/{task}/{name}": value for name, value in figures.items()}})
    elif isinstance(logger, CsvFiles):
        logger.log_metrics({"task": task, **figures}, step)
    elif logger is not None:
        logger.log_metrics({f"train/{task}/{name}": value for name, value in figures.items()}, step)


def log_stage(logger: Logger | None, step: int, metrics: Mapping[str, float]) -> None:
    """Record what was measured after stage `step` (0: the base model), with the stage as axis."""
    if isinstance(logger, WandbLogger):
        run = logger.experiment
        for name in metrics:
            run.define_metric(name, step_metric="stage")
        run.log({"stage": step, **metrics})
    elif isinstance(logger, CsvFiles):
        logger.log_stage(step, metrics)
    elif logger is not None:
        logger.log_metrics(dict(metrics), step)


def close_logger(logger: Logger | None, exit_code: int = 0) -> None:
    """Finish the run; with an `exit_code` other than 0 W&B shows it as failed."""
    if isinstance(logger, WandbLogger):
        logger.experiment.finish(exit_code=exit_code)
    elif logger is not None:
        logger.finalize("success" if exit_code == 0 else "failed")
