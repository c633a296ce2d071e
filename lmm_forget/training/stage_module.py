"""The LightningModule of a stage: one optimizer step per global batch, whatever the micro-batches and ranks."""

from __future__ import annotations

import gc
import math
import sys
import time
from contextlib import AbstractContextManager
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from lmm_forget.errors import LmmForgetError
from lmm_forget.models.family import IGNORE_INDEX
from lmm_forget.models.loading import LMM
from lmm_forget.recipes.method import Method
from lmm_forget.training.determinism import derive_seed, seed_everything
from lmm_forget.training.micro_batches import MicroBatch, shrink_micro_batch_size, unwrap_micro_batch
from lmm_forget.training.optimization import (
    OptimizerConfig,
    compute_learning_rate_factor,
    find_tower_parameters,
    make_parameter_groups,
)
from lmm_forget.training.precision import PrecisionContext
from lmm_forget.training.rng_states import RngStates
from lmm_forget.training.stage_config import TrainStageConfig
from lmm_forget.training.strategies.stage_strategy import StageStrategy
from lmm_forget.training.train_state import TrainState, gather_full_tensor, restore_moments


class StageModule(pl.LightningModule):
    """Trains everything in `lmm.model` that requires a gradient, through `method.loss`.

    The loss of an optimizer step is the mean over its global batch of each sample's mean token cross-entropy:
    a micro-batch contributes the sum of its samples' means times world / global_batch, and gradients are averaged over
    the ranks once, after the last micro-batch. With `loss=token_mean` every answer token of the global batch weighs the
    same. Everything that runs beside the steps is a callback (training/callbacks/).

    Attributes that callbacks read:
        config: the stage's TrainStageConfig; `lmm`, `method`, `num_steps` and `optimizer` are those of the stage.
        losses: the loss of every finished step, those before a resume included; `steps_done` is their number.
        micro_batch_size: samples per forward pass, smaller after a step that ran out of memory.
        is_exact: whether the run is still bit-exact (see docs/training.md).
        is_interrupted: the process was asked to stop; training ends after this step and can be resumed.
        stopped_after_step: the number of steps after which a callback ended the stage, None if none did.
        is_end_wanted: a callback set `trainer.should_stop` within this step; the stage ends after it.
        needs_retry: the fit ended because a step ran out of memory; it is repeated with `micro_batch_size`.
    """

    def __init__(
        self,
        lmm: LMM,
        method: Method,
        config: TrainStageConfig,
        optimizer_config: OptimizerConfig,
        precision_context: PrecisionContext,
        strategy: StageStrategy,
        *,
        micro_batch_size: int,
        train_state: TrainState | None = None,
        is_exact: bool = True,
    ) -> None:
        """`train_state` is the state to go on from (its masters are in the model already)."""
        super().__init__()
        self.automatic_optimization = False
        self.lmm, self.method, self.config = lmm, method, config
        self.num_steps = optimizer_config.num_steps
        self.losses: list[float] = list(train_state.losses) if train_state else []
        self.micro_batch_size, self.is_exact = micro_batch_size, is_exact
        self.needs_retry = self.is_interrupted = False
        self.stopped_after_step: int | None = None
        self.loss_module: Any = None
        self._optimizer_config, self._precision_context = optimizer_config, precision_context
        self._stage_strategy, self._train_state = strategy, train_state
        self._optimizer: AdamW | None = None
        self._is_resume_pending = train_state is not None
        self._rng_to_restore: RngStates | None = None
        self._rng_at_step_start: RngStates | None = None
        self._step_loss: Tensor | None = None
        self._step_tokens = 0
        self._is_out_of_memory = False
        self.is_end_wanted = False
        self._step_started_at = time.perf_counter()

    @property
    def steps_done(self) -> int:
        """Finished optimizer steps of the stage."""
        return len(self.losses)

    @property
    def optimizer(self) -> AdamW:
        """The stage's optimizer; there is one from the first fit on."""
        assert self._optimizer is not None
        return self._optimizer

    def configure_model(self) -> None:
        """Let the strategy prepare what is trained and compile decoder layers, once for all fits of this module."""
        if self.loss_module is None:
            device = self.trainer.strategy.root_device
            self.loss_module = self._stage_strategy.prepare_model(self.lmm, self.method, device)
        if self.config.hardware_config.get("compile"):
            for path in self._find_decoder_layer_paths():
                block = self.loss_module.model.get_submodule(path)
                if block._compiled_call_impl is None:
                    block.compile()

    def configure_optimizers(self) -> AdamW:
        """AdamW (fused: one pass over all tensors, the same bits every time); `_take_optimizer_step` sets its rates."""
        if self._optimizer is not None:  # this fit goes on where one ended that ran out of memory
            return self._optimizer
        optimizer_config, model = self._optimizer_config, self.loss_module.model
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        tower_names = find_tower_parameters(cast(nn.Module, self.lmm.model), self.lmm.components)
        optimizer = AdamW(
            make_parameter_groups(trainable, tower_names, optimizer_config),
            lr=optimizer_config.learning_rate,
            betas=optimizer_config.betas,
            eps=1e-8,
            weight_decay=optimizer_config.weight_decay,
            fused=True,
        )
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
        if self._train_state is not None:
            restore_moments(model, optimizer, self._train_state.tensors)
        self._optimizer = optimizer
        return optimizer

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a micro-batch; an error that came instead of one stays as it is."""
        return batch.to(device) if isinstance(batch, MicroBatch) else batch

    def snapshot(self) -> AbstractContextManager[None]:
        """The stage model as it would be now, in eval mode, for the block; all ranks must enter it."""
        return self._stage_strategy.snapshot(self.lmm, self.method, self._precision_context)

    def unshard_model(self) -> None:
        """Put what was trained back into the model, uncompiled; all ranks must call it."""
        for path in self._find_decoder_layer_paths():
            cast(nn.Module, self.lmm.model).get_submodule(path)._compiled_call_impl = None
        self._stage_strategy.unshard_model(self.lmm, self.method)

    def end_stage(self) -> None:
        """Take no further step: the stage is finished after those that are done."""
        self.stopped_after_step = self.steps_done
        self._stop_fit()

    def interrupt(self) -> None:
        """Take no further step: training stops here, and another process may resume it."""
        self.is_interrupted = True
        self._stop_fit()

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any] | None:
        """Add one micro-batch's gradient; after the last one of its global batch, take the optimizer step.

        Returns `step` (from 0), `loss` and `metrics` of a step that was taken, None where none was.
        """
        if self.needs_retry:
            return None
        micro_batch = unwrap_micro_batch(batch)
        self._restore_rng()  # as late as can be: what lies before this line may have drawn numbers
        if self._rng_at_step_start is None:
            self._rng_at_step_start = RngStates.capture()
        if not self._is_out_of_memory:
            self._accumulate_gradients(micro_batch)
        return self._take_optimizer_step(micro_batch.indices.step) if micro_batch.indices.is_last_of_step else None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let a callback that wants the stage to end (`trainer.should_stop`) wait for the whole step."""
        is_step_end = bool(outputs)
        if is_step_end:
            self._step_started_at = time.perf_counter()  # what callbacks did after the step is no training time
        if self.needs_retry or self.is_interrupted:
            return
        self.is_end_wanted |= self.trainer.should_stop
        self.trainer.should_stop = self.is_end_wanted and is_step_end
        if self.trainer.should_stop:
            self.stopped_after_step = self.steps_done

    def _accumulate_gradients(self, micro_batch: MicroBatch) -> None:
        try:
            with self._precision_context.make_autocast_context():
                sample_losses = self.loss_module(micro_batch.inputs, micro_batch.labels)
            loss = self._scale_losses(sample_losses, micro_batch)
            self.manual_backward(loss)
        except torch.OutOfMemoryError:
            if not self._stage_strategy.can_recover_from_oom:
                raise LmmForgetError(
                    f"out of memory in step {micro_batch.indices.step + 1} with "
                    f"hardware.micro_batch_size={self.micro_batch_size}; take "
                    "a smaller one: the same command then goes on from the last saved state"
                ) from None
            self._is_out_of_memory = True
            return
        self._step_loss = loss.detach() if self._step_loss is None else self._step_loss + loss.detach()

    def _scale_losses(self, sample_losses: Tensor, micro_batch: MicroBatch) -> Tensor:
        num_real_samples = len(micro_batch.indices.sample_indices)
        real_losses, filler_losses = sample_losses[:num_real_samples], sample_losses[num_real_samples:]
        world_size = self.config.process_group.size
        if self._optimizer_config.loss_reduction == "token_mean":  # divided by the number of tokens once that is known
            tokens = (micro_batch.labels[:num_real_samples, 1:] != IGNORE_INDEX).sum(dim=1)
            self._step_tokens += int(tokens.sum())
            scaled = (real_losses * tokens).sum() * world_size
        else:
            scaled = real_losses.sum() * (world_size / self._optimizer_config.global_batch_size)
        return scaled + 0.0 * filler_losses.sum() if len(filler_losses) else scaled

    def _take_optimizer_step(self, step: int) -> dict[str, Any] | None:
        optimizer, config = cast(Any, self.optimizers()), self._optimizer_config
        rank_loss = 0.0 if self._step_loss is None else float(self._step_loss)
        loss, tokens, is_out_of_memory = self.config.process_group.sum_over_ranks(
            [rank_loss, self._step_tokens, self._is_out_of_memory]
        )
        if is_out_of_memory:
            self._retry_with_smaller_batch(step)
            return None
        trainable = [p for group in optimizer.param_groups for p in group["params"]]
        loss /= self.config.process_group.size
        self._stage_strategy.average_gradients(trainable)
        if config.loss_reduction == "token_mean":
            loss /= tokens
            for p in trainable:
                if p.grad is not None:
                    p.grad.div_(tokens)
        if not math.isfinite(loss):
            raise LmmForgetError(
                f"the loss is {loss} in step {step + 1} of {config.num_steps}: training diverged; "
                f"use a smaller training.learning_rate (now {config.learning_rate:g})"
            )
        self.method.on_gradients(step)
        norm = self._clip_gradients(trainable)
        factor = compute_learning_rate_factor(step, num_steps=config.num_steps, warmup_ratio=config.warmup_ratio)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
        self.method.on_step_end(step)
        optimizer.zero_grad(set_to_none=True)
        metrics = {
            "loss": loss,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "grad_norm": float(gather_full_tensor(norm)),
            "samples_per_s": config.global_batch_size / max(time.perf_counter() - self._step_started_at, 1e-9),
        }
        self._reset_step()
        self.losses.append(loss)
        self.log_dict(metrics)  # for callbacks that read trainer.callback_metrics
        return {"step": step, "loss": torch.tensor(loss), "metrics": metrics}

    def _clip_gradients(self, trainable: list[nn.Parameter]) -> Tensor:
        """Clip the gradients as configured; returns their norm before."""
        if self._optimizer_config.max_grad_norm is not None:
            return nn.utils.clip_grad_norm_(trainable, self._optimizer_config.max_grad_norm)
        return nn.utils.get_total_norm([p.grad for p in trainable if p.grad is not None])

    def _retry_with_smaller_batch(self, step: int) -> None:
        """Some rank ran out of memory: undo what this step did so far, and end the fit to repeat it in less."""
        self.optimizer.zero_grad(set_to_none=True)
        process_group, previous_size = self.config.process_group, self.micro_batch_size
        smaller_size = shrink_micro_batch_size(
            previous_size, self._optimizer_config.global_batch_size // process_group.size
        )
        if smaller_size is None:
            raise LmmForgetError(
                f"out of memory in step {step + 1} with a single sample; use "
                "hardware.activation_checkpointing=true, hardware=fsdp or a smaller image budget (model.image)"
            )
        if process_group.is_rank_zero:
            print(
                f"lmm-forget: note: out of memory in step {step + 1}; it is repeated with micro-batches of "
                f"{smaller_size} (were {previous_size})",
                file=sys.stderr,
                flush=True,
            )
        self.is_exact = False
        self.micro_batch_size, self._rng_to_restore = smaller_size, self._rng_at_step_start
        self._reset_step()
        self.needs_retry = True
        self._stop_fit()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _reset_step(self) -> None:
        self._step_loss, self._step_tokens, self._rng_at_step_start, self._is_out_of_memory = None, 0, None, False

    def _stop_fit(self) -> None:
        if self._trainer is not None:
            self.trainer.should_stop = True

    def _restore_rng(self) -> None:
        """Before the first step of a fit: random numbers go on where the state was saved, or a step is repeated.

        With another number of ranks than that of the saved state they begin anew.
        """
        if self._is_resume_pending and self._train_state is not None:
            self._is_resume_pending = False
            rng_states, process_group = self._train_state.rng_states, self.config.process_group
            if len(rng_states) == process_group.size:
                rng_states[process_group.rank].restore()
            else:
                stage_seed = derive_seed(self.config.seed, self.config.task)
                names = ("resumed", self._train_state.step, process_group.size, process_group.rank)
                seed_everything(derive_seed(stage_seed, *names))
        if self._rng_to_restore is not None:
            self._rng_to_restore.restore()
            self._rng_to_restore = None

    def _find_decoder_layer_paths(self) -> list[str]:
        layer_ids = {id(layer) for layer in self.lmm.components.parts.language_layers}
        return [path for path, m in cast(nn.Module, self.lmm.model).named_modules() if id(m) in layer_ids]
