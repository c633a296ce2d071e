"""Ends a stage after a whole step when the process is asked to stop."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl

from lmm_forget.distributed.stop_signals import is_stop_requested, reinstall_stop_handlers
from lmm_forget.training.callbacks.stage_callback import StageCallback
from lmm_forget.training.stage_module import StageModule


class StopSignal(StageCallback):
    """Interrupts training on all ranks once one of them got SIGTERM or SIGUSR2; see `ResumeCheckpoint`."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's own SIGTERM handler would stop between two micro-batches of one step: take ours back."""
        reinstall_stop_handlers()

    def on_optimizer_step_end(self, trainer: pl.Trainer, module: StageModule, metrics: Mapping[str, float]) -> None:
        """Ask all ranks."""
        if module.config.process_group.is_true_on_any_rank(is_stop_requested()):
            module.interrupt()
