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

from lmm_forget.distributed.process_group import ALONE, Ranks
from lmm_forget.distributed.stop_signals import Interrupted, asked, listen_again
from lmm_forget.errors import LmmForgetError
from lmm_forget.models.family import IGNORE
from lmm_forget.training.batches import MicroBatch, checked, smaller
from lmm_forget.training.determinism import derived_seed, generators, put_back, seed_everything
from lmm_forget.training.gradients import average
from lmm_forget.training.optimization import (
    Optimization,
    learning_rate_factor,
    parameter_groups,
    tower_names,
)
from lmm_forget.training.resume import (
    Resume,
    Saved,
    capture,
    full,
    layout,
    random_states,
    restore_moments,
    restore_random_states,
)
from lmm_forget.training.sharded import Lesson, Sharded
from lmm_forget.training.undisturbed import undisturbed

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM
    from lmm_forget.recipes.method import Method
    from lmm_forget.training.precision import Compute


class AfterStep(Protocol):
    """Looks at a model while it is trained."""

    def wants(self, step: int) -> bool:
        """Whether it is to be called after `step` finished steps; the same on every rank."""

    def __call__(self, step: int) -> bool:
        """Look; True ends the stage."""


class Look(Enum):
    """What came of looking at a model in the middle of its training."""

    GOES_ON = "the stage goes on"
    ENDS_THE_STAGE = "it ends here"
    STOPPED_SHORT = "the process was asked to stop meanwhile"


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
        opt: Optimization,
        compute: Compute,
        *,
        on_step: Callable[[int, dict[str, float]], None],
        resume: Resume | None = None,
        saved: Saved | None = None,
        micro_batch: int = 0,
        exact: bool = True,
        seed: int = 0,
        ranks: Ranks = ALONE,
        shard: bool = False,
        compiled: bool = False,
        after_step: AfterStep | None = None,
    ) -> None:
        """`on_step(step, figures)` hears of each finished step: loss, learning_rate, grad_norm, samples_per_s.
        `after_step` looks at the stage model as it would be now; `stopped` is the step after which it ended the stage.
        With `resume` the state is saved as it says and when the process is asked to stop;
        `saved` is the state to go on from (its masters are in the model already). `shard` cuts what is trained over
        the ranks. `repeat` says, after a fit that ended early, that a step ran out of memory and is to be taken again
        with the smaller `micro_batch`. `exact` is whether nothing has cost the promise of equal bytes so far.
        """
        super().__init__()
        self.automatic_optimization = False
        self._lmm, self._method, self._opt, self._compute, self._on_step = lmm, method, opt, compute, on_step
        self._resume, self._saved, self._ranks, self._shard = resume, saved, ranks, shard
        self._compiled = compiled
        self._after_step, self.stopped = after_step, cast(int | None, None)
        self.micro_batch, self.repeat, self.exact, self._seed = micro_batch, False, exact, seed
        self.losses: list[float] = list(saved.losses) if saved else []
        self._dtypes = {info.name: info.dtype for info in lmm.components}
        self._tower = tower_names(cast(nn.Module, lmm.model), lmm.components)
        layers = {id(layer) for layer in lmm.components.parts.language_layers}
        self._blocks = [path for path, m in cast(nn.Module, lmm.model).named_modules() if id(m) in layers]
        self._sharded: Sharded | None = None
        self.lesson: Any = None if shard else Lesson(lmm, method)
        self._optimizer: AdamW | None = None
        self._restore: Callable[[], None] | None = None if saved is None else self._saved_generators
        self._begun: Any = None
        self._loss: Tensor | None = None
        self._tokens = 0
        self._ran_out = False
        self._since = time.perf_counter()

    def configure_model(self) -> None:
        """Cut what is trained over the ranks and compile decoder layers, once for all fits of this module."""
        if self._shard and self._sharded is None:
            device = self.trainer.strategy.root_device
            # Lightning moves what is trained; the stage's own model, which probes and teachers run, goes along.
            cast(nn.Module, self._lmm.model).to(device)
            mesh = self._ranks.mesh(device.type)["data_parallel"]
            self._sharded = Sharded(self._lmm, self._method, mesh)
            self.lesson = self._sharded.lesson
        if self._compiled:
            for path in self._blocks:
                block = self.lesson.model.get_submodule(path)
                if block._compiled_call_impl is None:
                    block.compile()

    def configure_optimizers(self) -> AdamW:
        """AdamW (fused: one pass over all tensors, the same bits every time); `_finish_step` sets its rates."""
        if self._optimizer is not None:  # this fit goes on where one ended that ran out of memory
            return self._optimizer
        opt, model = self._opt, self.lesson.model
        moving = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        optimizer = AdamW(
            parameter_groups(moving, self._tower, opt),
            lr=opt.learning_rate,
            betas=opt.betas,
            eps=1e-8,
            weight_decay=opt.weight_decay,
            fused=True,
        )
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
        if self._saved is not None:
            restore_moments(model, optimizer, self._saved.tensors)
        self._optimizer = optimizer
        return optimizer

    def on_train_start(self) -> None:
        """Lightning's own SIGTERM handler would stop between two micro-batches of one step: take ours back."""
        listen_again()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a micro-batch; an error that came instead of one stays as it is."""
        return batch.to(device) if isinstance(batch, MicroBatch) else batch

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The stage model as it would be now, in eval mode, for the block; all ranks must enter it."""
        model = cast(nn.Module, self._lmm.model)
        shown = (
            None if self._sharded else self._method.stage_tensor
        )  # what is put together is made on the way
        with (
            self._sharded.filled(self._stage_tensor) if self._sharded else nullcontext(),
            undisturbed(model, self._compute, shown),
        ):
            yield

    def hand_back(self) -> None:
        """Put what was trained back into the model; all ranks must call it. Nothing to do where it was never cut."""
        for path in self._blocks:
            cast(nn.Module, self._lmm.model).get_submodule(path)._compiled_call_impl = None
        if self._sharded is not None:
            self._sharded.fill(self._stage_tensor if self._method.rounds else None)

    def _stage_tensor(self, name: str, master: Tensor) -> Tensor:
        """What the method makes of a master, in the checkpoint's dtype (adapters are in none and keep theirs)."""
        return self._method.stage_tensor(name, master, self._dtypes.get(name, master.dtype))

    def training_step(self, found: Any, batch_idx: int) -> None:
        """Add one micro-batch's gradient; after the last one of its global batch, take the optimizer step."""
        if self.repeat:
            return
        micro = checked(found)
        if self._restore is not None:  # as late as can be: what lies before this line may have drawn numbers
            self._restore()
            self._restore = None
        if self._begun is None:
            self._begun = generators()
        if not self._ran_out:
            self._add(micro)
        if micro.slot.last:
            self._finish_step(micro.slot.step)

    def _add(self, micro: MicroBatch) -> None:
        try:
            with self._compute.autocast():
                means = self.lesson(micro.batch, micro.labels)
            loss = self._scaled(means, micro)
            self.manual_backward(loss)
        except torch.OutOfMemoryError:
            if self._shard:  # the other ranks wait inside the forward pass for tensors that will not come
                raise LmmForgetError(
                    f"out of memory in step {micro.slot.step + 1} with hardware.micro_batch={self.micro_batch}; take "
                    "a smaller one: the same command then goes on from the last saved state"
                ) from None
            self._ran_out = True
            return
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def _scaled(self, means: Tensor, micro: MicroBatch) -> Tensor:
        real = len(micro.slot.indices)
        own, filler = means[:real], means[real:]
        if self._opt.loss == "token_mean":  # divided by the number of tokens once that is known
            tokens = (micro.labels[:real, 1:] != IGNORE).sum(dim=1)
            self._tokens += int(tokens.sum())
            scaled = (own * tokens).sum() * self._ranks.size
        else:
            scaled = own.sum() * (self._ranks.size / self._opt.global_batch)
        return scaled + 0.0 * filler.sum() if len(filler) else scaled

    def _finish_step(self, step: int) -> None:
        optimizer = cast(Any, self.optimizers())
        share = 0.0 if self._loss is None else float(self._loss)
        loss, tokens, ran_out, stopping = self._ranks.sum([share, self._tokens, self._ran_out, asked()])
        if ran_out:
            self._rewind(step, optimizer)
            return
        moving = [p for group in optimizer.param_groups for p in group["params"]]
        loss /= self._ranks.size
        if not self._shard:
            average(moving, self._ranks)
        if self._opt.loss == "token_mean":
            loss /= tokens
            for p in moving:
                if p.grad is not None:
                    p.grad.div_(tokens)
        if not math.isfinite(loss):
            raise LmmForgetError(
                f"the loss is {loss} in step {step + 1} of {self._opt.steps}: training diverged; "
                f"use a smaller training.learning_rate (now {self._opt.learning_rate:g})"
            )
        if self._opt.clip is not None:
            norm = nn.utils.clip_grad_norm_(moving, self._opt.clip)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in moving if p.grad is not None])
        factor = learning_rate_factor(step, steps=self._opt.steps, warmup=self._opt.warmup)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        now = time.perf_counter()
        figures = {
            "loss": loss,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "grad_norm": float(full(norm)),
            "samples_per_s": self._opt.global_batch / max(now - self._since, 1e-9),
        }
        self._loss, self._tokens, self._begun, self._since = None, 0, None, now
        self.losses.append(loss)
        self._on_step(step, figures)
        if stopping:  # there may be no time to look: whoever goes on from this state looks first
            self._stop_here(step + 1, optimizer)
        look = self._looked(step + 1)
        self._since = time.perf_counter()  # what was done on hearing of the step is no training time
        if look is Look.STOPPED_SHORT:
            self._stop_here(step + 1, optimizer)
        if look is Look.ENDS_THE_STAGE:
            # No state is saved here: a stage that goes on from one must stop again.
            self.stopped = step + 1
            self.trainer.should_stop = True
        elif self._resume is not None and (step + 1) % self._resume.every == 0 and step + 1 < self._opt.steps:
            self._save(step + 1, optimizer)

    def look_first(self) -> None:
        """Look at the state that training goes on from: whoever saved it may have had no time to. Before any fit."""
        look = self._looked(len(self.losses)) if self._saved is not None else Look.GOES_ON
        if look is Look.STOPPED_SHORT:
            raise Interrupted
        if look is Look.ENDS_THE_STAGE:
            self.stopped = len(self.losses)

    def _looked(self, done: int) -> Look:
        """Let `after_step` look, on the first rank; all ranks hear what came of it."""
        watch = self._after_step
        if watch is None or not watch.wants(done):
            return Look.GOES_ON

        def look() -> Look:
            try:
                return Look.ENDS_THE_STAGE if watch(done) else Look.GOES_ON
            except Interrupted:  # asked to stop while it looked: all ranks have to save first
                return Look.STOPPED_SHORT

        with self.whole():
            return self._ranks.on_first(look)

    def _rewind(self, step: int, optimizer: Any) -> None:
        """Some rank ran out of memory: undo what this step did so far, and end the fit to take it again in less."""
        optimizer.zero_grad(set_to_none=True)
        before, begun = self.micro_batch, self._begun
        less = smaller(before, self._opt.global_batch // self._ranks.size)
        if less is None:
            raise LmmForgetError(
                f"out of memory in step {step + 1} with a single sample; use "
                "hardware.activation_checkpointing=true, hardware=fsdp or a smaller image budget (model.image)"
            )
        if self._ranks.first:
            print(
                f"lmm-forget: note: out of memory in step {step + 1}; it is repeated with micro-batches of {less} "
                f"(were {before})",
                file=sys.stderr,
                flush=True,
            )
        self.exact = False
        self.micro_batch, self._restore = less, lambda: put_back(begun)
        self._loss, self._tokens, self._begun, self._ran_out = None, 0, None, False
        self.repeat = self.trainer.should_stop = True
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _stop_here(self, done: int, optimizer: Any) -> NoReturn:
        """Keep the state after `done` steps and end the process's work."""
        if self._resume is not None:
            self._save(done, optimizer)
        raise Interrupted

    def _save(self, done: int, optimizer: Any) -> None:
        """Keep the state after `done` steps; all ranks must call it."""
        assert self._resume is not None
        state = {
            "losses": self.losses,
            "micro_batch": self.micro_batch,
            "layout": layout(self._ranks.size, next(self._lmm.model.parameters()).device.type),
            "exact": self.exact,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "random": self._ranks.gather(random_states()),
        }
        tensors = capture(self.lesson.model, optimizer.optimizer, keep=self._ranks.first)
        safe = self._resume.safe
        self._ranks.on_first(lambda: safe.save(done, tensors, state))

    def _saved_generators(self) -> None:
        """Random numbers go on where the state was saved; with another number of ranks they begin anew."""
        assert self._saved is not None
        if len(self._saved.random) == self._ranks.size:
            restore_random_states(self._saved.random[self._ranks.rank])
        else:
            ranks = self._ranks
            seed_everything(derived_seed(self._seed, "resumed", self._saved.step, ranks.size, ranks.rank))
