"""Examines the stage model between two steps: milestones, and the drift alarm that can end the stage."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import lightning.pytorch as pl

from lmm_forget.distributed.stop_signals import StopRequested
from lmm_forget.training.callbacks.stage_callback import StageCallback
from lmm_forget.training.stage_module import StageModule


class _ProbeOutcome(Enum):
    CONTINUE = "the stage goes on"
    END_STAGE = "it ends here"
    INTERRUPTED = "the process was asked to stop meanwhile"


class StepProbes(StageCallback):
    """Calls the stage's `step_probe` on the first rank, with the model as the stage model it would be now."""

    def on_stage_start(self, module: StageModule) -> None:
        """Examine the state that training is resumed from: whoever saved it may have had no time to."""
        if module.steps_done:
            self._run_probe(module)

    def on_optimizer_step_end(self, trainer: pl.Trainer, module: StageModule, metrics: Mapping[str, float]) -> None:
        """Examine this step; one after which training is interrupted is examined by whoever resumes it."""
        if not module.is_interrupted:
            self._run_probe(module)

    def _run_probe(self, module: StageModule) -> None:
        step_probe = module.config.step_probe
        if step_probe is None or not step_probe.is_due(module.steps_done):
            return

        def call_probe() -> _ProbeOutcome:
            try:
                return _ProbeOutcome.END_STAGE if step_probe(module.steps_done) else _ProbeOutcome.CONTINUE
            except StopRequested:  # asked to stop while it was at it: all ranks have to save first
                return _ProbeOutcome.INTERRUPTED

        with module.snapshot():
            outcome = module.config.process_group.broadcast_from_rank_zero(call_probe)
        if outcome is _ProbeOutcome.INTERRUPTED:
            module.interrupt()
        elif outcome is _ProbeOutcome.END_STAGE:
            module.end_stage()
