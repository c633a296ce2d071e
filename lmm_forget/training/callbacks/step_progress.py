"""Shows what a stage's training has done: one phase of so many optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl

from lmm_forget.training.callbacks.stage_callback import StageCallback
from lmm_forget.training.stage_module import StageModule


class StepProgress(StageCallback):
    """Reports each optimizer step, its loss and the speed to the job's `Progress`."""

    def on_stage_start(self, module: StageModule) -> None:
        """Begin the phase, at the step that training is resumed from."""
        config, steps_done = module.config, module.steps_done
        phase_name = config.phase_name or f"train {config.task}"
        if steps_done:
            phase_name += f" from step {steps_done}"
        config.progress.start_phase(phase_name, module.num_steps, "step")
        if steps_done:
            config.progress.advance(steps_done)

    def on_optimizer_step_end(self, trainer: pl.Trainer, module: StageModule, metrics: Mapping[str, float]) -> None:
        """One step more."""
        module.config.progress.advance(1, loss=metrics["loss"], samples_per_s=metrics["samples_per_s"])
