"""Writes the training curve to the job's tracker."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl

from lmm_forget.training.callbacks.stage_callback import StageCallback
from lmm_forget.training.lightning_logger import TrackerLogger
from lmm_forget.training.stage_module import StageModule


class StepLogging(StageCallback):
    """Logs every `every_n_steps`-th optimizer step, the first and the last one.

    What other callbacks gave Lightning's logger since the last row goes along (W&B shows it; training.csv has fixed
    columns).
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self._every_n_steps = every_n_steps

    def on_optimizer_step_end(self, trainer: pl.Trainer, module: StageModule, metrics: Mapping[str, float]) -> None:
        """Log this step, if it is one to log."""
        step, tracker = module.steps_done, module.config.tracker
        if tracker is None or not ((step - 1) % self._every_n_steps == 0 or step == module.num_steps):
            return
        logger = trainer.logger
        other_metrics = logger.take_metrics() if isinstance(logger, TrackerLogger) else {}
        tracker.log_step(module.config.task, step, {**other_metrics, **metrics})
