"""The LightningModule of a stage: one optimizer step per global batch, whatever the micro-batches and ranks."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lmm_forget.distributed.stop_signals import StopRequested, is_stop_requested, reinstall_stop_handlers
from lmm_forget.errors import LmmForgetError
from lmm_forget.models.family import IGNORE_INDEX
from lmm_forget.training.determinism import derive_seed, get_rng_states, seed_everything, set_rng_states
from lmm_forget.training.gradients import average_gradients
from lmm_forget.training.micro_batches import MicroBatch, shrink_micro_batch_size, unwrap_micro_batch
from lmm_forget.training.optimization import (
    OptimizerConfig,
    compute_learning_rate_factor,
    find_tower_parameters,
    make_parameter_groups,
)
from lmm_forget.training.sharded_model import LossModule, ShardedModel
from lmm_forget.training.snapshot import eval_snapshot
from lmm_forget.training.train_state import (
    ResumeConfig,
    TrainState,
    collect_train_tensors,
    describe_topology,
    gather_full_tensor,
    restore_moments,
    restore_serialized_rng_states,
    serialize_rng_states,
)

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM
    from lmm_forget.recipes.method import Method
    from lmm_forget.training.precision import PrecisionContext


class StepCallback(Protocol):
    """Looks at a model while it is trained."""

    def is_due(self, step: int) -> bool:
        """Whether it is to be called after `step` finished steps; the same on every rank."""

    def __call__(self, step: int) -> bool:
        """Look; True ends the stage."""


class StepDecision(Enum):
    """What came of looking at a model in the middle of its training."""

    CONTINUE = "the stage goes on"
    END_STAGE = "it ends here"
    INTERRUPTED = "the process was asked to stop meanwhile"


class StageModule(pl.LightningModule):
    """Trains everything in `lmm.model` that requires a gradient, through `method.loss`.

    The loss of an optimizer step is the mean over its global batch of each sample's mean token cross-entropy:
    a micro-batch contributes the sum of its samples' means times world / global_batch, and gradients are averaged over
    the ranks once, after the last micro-batch. With `loss=token_mean` every answer token of the global batch weighs the
    same. `losses` collects one value per step.

    PyTorch's DDP wrapper is not used: it sends gradients from within the last backward pass, when ranks can no longer
    agree that one of them ran out of memory, and it fails where a batch of one rank has no pictures.
    """

    def __init__(
        self,
        lmm: LMM,
        method: Method,
        optimizer_config: OptimizerConfig,
        precision_context: PrecisionContext,
        *,
        on_step_end: Callable[[int, dict[str, float]], None],
        resume_config: ResumeConfig | None = None,
        train_state: TrainState | None = None,
        micro_batch_size: int = 0,
        is_exact: bool = True,
        seed: int = 0,
        process_group: ProcessGroup = SINGLE_PROCESS,
        is_sharded: bool = False,
        use_compile: bool = False,
        step_callback: StepCallback | None = None,
    ) -> None:
        """`on_step_end(step, figures)` hears of each finished step: loss, learning_rate, grad_norm, samples_per_s.
        `step_callback` looks at the stage model as it would be now; `stopped` is the step after which it ended the
        stage. With `resume` the state is saved as it says and when the process is asked to stop;
        `saved` is the state to go on from (its masters are in the model already). `shard` cuts what is trained over
        the ranks. `repeat` says, after a fit that ended early, that a step ran out of memory and is to be taken again
        with the smaller `micro_batch`. `exact` is whether nothing has cost the promise of equal bytes so far.
        """
        super().__init__()
        self.automatic_optimization = False
        self._lmm, self._method, self._optimizer_config, self._precision_context, self._on_step_end = (
            lmm,
            method,
            optimizer_config,
            precision_context,
            on_step_end,
        )
        self._resume_config, self._train_state, self._process_group, self._is_sharded = (
            resume_config,
            train_state,
            process_group,
            is_sharded,
        )
        self._use_compile = use_compile
        self._step_callback, self.stopped_after_step = step_callback, cast(int | None, None)
        self.micro_batch, self.needs_retry, self.exact, self._seed = micro_batch_size, False, is_exact, seed
        self.losses: list[float] = list(train_state.losses) if train_state else []
        self._checkpoint_dtypes = {info.name: info.dtype for info in lmm.components}
        self._tower_names = find_tower_parameters(cast(nn.Module, lmm.model), lmm.components)
        decoder_layer_ids = {id(layer) for layer in lmm.components.parts.language_layers}
        self._decoder_layer_paths = [
            path for path, m in cast(nn.Module, lmm.model).named_modules() if id(m) in decoder_layer_ids
        ]
        self._sharded_model: ShardedModel | None = None
        self.loss_module: Any = None if is_sharded else LossModule(lmm, method)
        self._optimizer: AdamW | None = None
        self._restore_rng: Callable[[], None] | None = None if train_state is None else self._restore_saved_rng
        self._rng_at_step_start: Any = None
        self._step_loss: Tensor | None = None
        self._step_tokens = 0
        self._is_out_of_memory = False
        self._step_started_at = time.perf_counter()

    def configure_model(self) -> None:
        """Cut what is trained over the ranks and compile decoder layers, once for all fits of this module."""
        if self._is_sharded and self._sharded_model is None:
            device = self.trainer.strategy.root_device
            # Lightning moves what is trained; the stage's own model, which probes and teachers run, goes along.
            cast(nn.Module, self._lmm.model).to(device)
            mesh = self._process_group.get_device_mesh(device.type)["data_parallel"]
            self._sharded_model = ShardedModel(self._lmm, self._method, mesh)
            self.loss_module = self._sharded_model.loss_module
        if self._use_compile:
            for path in self._decoder_layer_paths:
                block = self.loss_module.model.get_submodule(path)
                if block._compiled_call_impl is None:
                    block.compile()

    def configure_optimizers(self) -> AdamW:
        """AdamW (fused: one pass over all tensors, the same bits every time); `_take_optimizer_step` sets its rates."""
        if self._optimizer is not None:  # this fit goes on where one ended that ran out of memory
            return self._optimizer
        optimizer_config, model = self._optimizer_config, self.loss_module.model
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        optimizer = AdamW(
            make_parameter_groups(trainable, self._tower_names, optimizer_config),
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

    def on_train_start(self) -> None:
        """Lightning's own SIGTERM handler would stop between two micro-batches of one step: take ours back."""
        reinstall_stop_handlers()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a micro-batch; an error that came instead of one stays as it is."""
        return batch.to(device) if isinstance(batch, MicroBatch) else batch

    @contextmanager
    def stage_model_snapshot(self) -> Iterator[None]:
        """The stage model as it would be now, in eval mode, for the block; all ranks must enter it."""
        model = cast(nn.Module, self._lmm.model)
        compute_stage_tensor = (
            None if self._sharded_model else self._method.compute_stage_tensor
        )  # what is put together is made on the way
        with (
            self._sharded_model.gathered_model(self._compute_stage_tensor) if self._sharded_model else nullcontext(),
            eval_snapshot(model, self._precision_context, compute_stage_tensor),
        ):
            yield

    def unshard_model(self) -> None:
        """Put what was trained back into the model; all ranks must call it. Nothing to do where it was never cut."""
        for path in self._decoder_layer_paths:
            cast(nn.Module, self._lmm.model).get_submodule(path)._compiled_call_impl = None
        if self._sharded_model is not None:
            self._sharded_model.gather_into_model(self._compute_stage_tensor if self._method.is_rounding_only else None)

    def _compute_stage_tensor(self, name: str, master: Tensor) -> Tensor:
        """What the method makes of a master, in the checkpoint's dtype (adapters are in none and keep theirs)."""
        return self._method.compute_stage_tensor(name, master, self._checkpoint_dtypes.get(name, master.dtype))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Add one micro-batch's gradient; after the last one of its global batch, take the optimizer step."""
        if self.needs_retry:
            return
        micro_batch = unwrap_micro_batch(batch)
        if self._restore_rng is not None:  # as late as can be: what lies before this line may have drawn numbers
            self._restore_rng()
            self._restore_rng = None
        if self._rng_at_step_start is None:
            self._rng_at_step_start = get_rng_states()
        if not self._is_out_of_memory:
            self._accumulate_gradients(micro_batch)
        if micro_batch.indices.is_last_of_step:
            self._take_optimizer_step(micro_batch.indices.step)

    def _accumulate_gradients(self, micro_batch: MicroBatch) -> None:
        try:
            with self._precision_context.make_autocast_context():
                sample_losses = self.loss_module(micro_batch.inputs, micro_batch.labels)
            loss = self._scale_losses(sample_losses, micro_batch)
            self.manual_backward(loss)
        except torch.OutOfMemoryError:
            if self._is_sharded:  # the other ranks wait inside the forward pass for tensors that will not come
                raise LmmForgetError(
                    f"out of memory in step {micro_batch.indices.step + 1} with "
                    f"hardware.micro_batch_size={self.micro_batch}; take "
                    "a smaller one: the same command then goes on from the last saved state"
                ) from None
            self._is_out_of_memory = True
            return
        self._step_loss = loss.detach() if self._step_loss is None else self._step_loss + loss.detach()

    def _scale_losses(self, sample_losses: Tensor, micro_batch: MicroBatch) -> Tensor:
        num_real_samples = len(micro_batch.indices.sample_indices)
        real_losses, filler_losses = sample_losses[:num_real_samples], sample_losses[num_real_samples:]
        if self._optimizer_config.loss_reduction == "token_mean":  # divided by the number of tokens once that is known
            tokens = (micro_batch.labels[:num_real_samples, 1:] != IGNORE_INDEX).sum(dim=1)
            self._step_tokens += int(tokens.sum())
            scaled = (real_losses * tokens).sum() * self._process_group.size
        else:
            scaled = real_losses.sum() * (self._process_group.size / self._optimizer_config.global_batch_size)
        return scaled + 0.0 * filler_losses.sum() if len(filler_losses) else scaled

    def _take_optimizer_step(self, step: int) -> None:
        optimizer = cast(Any, self.optimizers())
        rank_loss = 0.0 if self._step_loss is None else float(self._step_loss)
        loss, tokens, is_out_of_memory, stop_requested = self._process_group.sum_over_ranks(
            [rank_loss, self._step_tokens, self._is_out_of_memory, is_stop_requested()]
        )
        if is_out_of_memory:
            self._retry_with_smaller_batch(step, optimizer)
            return
        trainable = [p for group in optimizer.param_groups for p in group["params"]]
        loss /= self._process_group.size
        if not self._is_sharded:
            average_gradients(trainable, self._process_group)
        if self._optimizer_config.loss_reduction == "token_mean":
            loss /= tokens
            for p in trainable:
                if p.grad is not None:
                    p.grad.div_(tokens)
        if not math.isfinite(loss):
            raise LmmForgetError(
                f"the loss is {loss} in step {step + 1} of {self._optimizer_config.num_steps}: training diverged; "
                f"use a smaller training.learning_rate (now {self._optimizer_config.learning_rate:g})"
            )
        if self._optimizer_config.max_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(trainable, self._optimizer_config.max_grad_norm)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in trainable if p.grad is not None])
        factor = compute_learning_rate_factor(
            step, num_steps=self._optimizer_config.num_steps, warmup_ratio=self._optimizer_config.warmup_ratio
        )
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        now = time.perf_counter()
        metrics = {
            "loss": loss,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "grad_norm": float(gather_full_tensor(norm)),
            "samples_per_s": self._optimizer_config.global_batch_size / max(now - self._step_started_at, 1e-9),
        }
        self._step_loss, self._step_tokens, self._rng_at_step_start, self._step_started_at = (
            None,
            0,
            None,
            now,
        )
        self.losses.append(loss)
        self._on_step_end(step, metrics)
        if stop_requested:  # there may be no time to look: whoever goes on from this state looks first
            self._save_and_interrupt(step + 1, optimizer)
        decision = self._run_step_callback(step + 1)
        self._step_started_at = time.perf_counter()  # what was done on hearing of the step is no training time
        if decision is StepDecision.INTERRUPTED:
            self._save_and_interrupt(step + 1, optimizer)
        if decision is StepDecision.END_STAGE:
            # No state is saved here: a stage that goes on from one must stop again.
            self.stopped_after_step = step + 1
            self.trainer.should_stop = True
        elif (
            self._resume_config is not None
            and (step + 1) % self._resume_config.every_n_steps == 0
            and step + 1 < self._optimizer_config.num_steps
        ):
            self._save_train_state(step + 1, optimizer)

    def run_callback_before_fit(self) -> None:
        """Look at the state that training goes on from: whoever saved it may have had no time to. Before any fit."""
        decision = self._run_step_callback(len(self.losses)) if self._train_state is not None else StepDecision.CONTINUE
        if decision is StepDecision.INTERRUPTED:
            raise StopRequested
        if decision is StepDecision.END_STAGE:
            self.stopped_after_step = len(self.losses)

    def _run_step_callback(self, steps_done: int) -> StepDecision:
        """Let `step_callback` look, on the first rank; all ranks hear what came of it."""
        step_callback = self._step_callback
        if step_callback is None or not step_callback.is_due(steps_done):
            return StepDecision.CONTINUE

        def call_callback() -> StepDecision:
            try:
                return StepDecision.END_STAGE if step_callback(steps_done) else StepDecision.CONTINUE
            except StopRequested:  # asked to stop while it looked: all ranks have to save first
                return StepDecision.INTERRUPTED

        with self.stage_model_snapshot():
            return self._process_group.broadcast_from_rank_zero(call_callback)

    def _retry_with_smaller_batch(self, step: int, optimizer: Any) -> None:
        """Some rank ran out of memory: undo what this step did so far, and end the fit to take it again in less."""
        optimizer.zero_grad(set_to_none=True)
        previous_size, rng_states = self.micro_batch, self._rng_at_step_start
        smaller_size = shrink_micro_batch_size(
            previous_size, self._optimizer_config.global_batch_size // self._process_group.size
        )
        if smaller_size is None:
            raise LmmForgetError(
                f"out of memory in step {step + 1} with a single sample; use "
                "hardware.activation_checkpointing=true, hardware=fsdp or a smaller image budget (model.image)"
            )
        if self._process_group.is_rank_zero:
            print(
                f"lmm-forget: note: out of memory in step {step + 1}; it is repeated with micro-batches of "
                f"{smaller_size} "
                f"(were {previous_size})",
                file=sys.stderr,
                flush=True,
            )
        self.exact = False
        self.micro_batch, self._restore_rng = smaller_size, lambda: set_rng_states(rng_states)
        self._step_loss, self._step_tokens, self._rng_at_step_start, self._is_out_of_memory = (
            None,
            0,
            None,
            False,
        )
        self.needs_retry = self.trainer.should_stop = True
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _save_and_interrupt(self, steps_done: int, optimizer: Any) -> NoReturn:
        """Keep the state after `done` steps and end the process's work."""
        if self._resume_config is not None:
            self._save_train_state(steps_done, optimizer)
        raise StopRequested

    def _save_train_state(self, steps_done: int, optimizer: Any) -> None:
        """Keep the state after `done` steps; all ranks must call it."""
        assert self._resume_config is not None
        state = {
            "losses": self.losses,
            "micro_batch_size": self.micro_batch,
            "layout": describe_topology(self._process_group.size, next(self._lmm.model.parameters()).device.type),
            "exact": self.exact,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "random": self._process_group.gather_values(serialize_rng_states()),
        }
        tensors = collect_train_tensors(
            self.loss_module.model, optimizer.optimizer, is_writer=self._process_group.is_rank_zero
        )
        state_store = self._resume_config.state_store
        self._process_group.broadcast_from_rank_zero(lambda: state_store.save(steps_done, tensors, state))

    def _restore_saved_rng(self) -> None:
        """Random numbers go on where the state was saved; with another number of ranks they begin anew."""
        assert self._train_state is not None
        if len(self._train_state.rng_states) == self._process_group.size:
            restore_serialized_rng_states(self._train_state.rng_states[self._process_group.rank])
        else:
            process_group = self._process_group
            seed_everything(
                derive_seed(self._seed, "resumed", self._train_state.step, process_group.size, process_group.rank)
            )
