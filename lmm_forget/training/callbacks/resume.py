"""Saves the training states that a stage is resumed from."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from lmm_forget.training.callbacks.stage_callback import StageCallback
from lmm_forget.training.rng_states import RngStates
from lmm_forget.training.stage_module import StageModule
from lmm_forget.training.train_state import ResumeConfig, add_method_tensors, collect_train_tensors, describe_topology


class ResumeCheckpoint(StageCallback, Checkpoint):
    """Saves a state every so many optimizer steps, and one when training is interrupted.

    Lightning calls a Checkpoint behind all other callbacks: whatever they do after a step is done when it is saved.
    """

    def on_optimizer_step_end(self, trainer: pl.Trainer, module: StageModule, metrics: Mapping[str, float]) -> None:
        """Save this step's state, if it is one to save; none where the stage ends (a resumed stage must end again)."""
        resume_config, steps_done = module.config.resume_config, module.steps_done
        if resume_config is None:
            return
        is_due = steps_done % resume_config.every_n_steps == 0 and steps_done < module.num_steps
        is_ending = trainer.should_stop or module.is_end_wanted
        if module.is_interrupted or (is_due and not is_ending):
            save_train_state(module, resume_config)


def save_train_state(module: StageModule, resume_config: ResumeConfig) -> None:
    """Save everything that the next step depends on; all ranks must call it."""
    process_group, optimizer = module.config.process_group, module.optimizer
    state = {
        "losses": module.losses,
        "micro_batch_size": module.micro_batch_size,
        "layout": describe_topology(process_group.size, next(module.lmm.model.parameters()).device.type),
        "exact": module.is_exact,
        "learning_rate": optimizer.param_groups[0]["lr"],
        "random": process_group.gather_values(RngStates.capture().to_json()),
    }
    is_writer, method_tensors = process_group.is_rank_zero, module.method.resume_state()
    tensors = collect_train_tensors(module.loss_module.model, optimizer, is_writer=is_writer)
    if is_writer:
        add_method_tensors(tensors, method_tensors)
    steps_done = module.steps_done
    process_group.broadcast_from_rank_zero(lambda: resume_config.state_store.save(steps_done, tensors, state))
