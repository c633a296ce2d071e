"""The LightningModule of a stage: one optimizer step per global batch, whatever the micro-batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from lmm_forget.errors import ConfigError, LmmForgetError
from lmm_forget.models.family import IGNORE
from lmm_forget.stopping import asked, listen_again, safe_point
from lmm_forget.training.batches import MicroBatch, checked
from lmm_forget.training.resume import (
    Resume,
    Saved,
    capture,
    layout,
    random_states,
    restore_moments,
    restore_random_states,
)

if TYPE_CHECKING:
    from lmm_forget.models.components import ComponentMap
    from lmm_forget.models.loading import LMM
    from lmm_forget.recipes.method import Method
    from lmm_forget.training.precision import Compute

LOSSES = ("sample_mean", "token_mean")


@dataclass(frozen=True)
class Optimization:
    """Hyper-parameters of a stage as its optimizer needs them; `warmup` is a share of `steps`."""

    steps: int
    global_batch: int
    learning_rate: float
    vision_learning_rate: float | None
    warmup: float
    weight_decay: float
    clip: float | None
    betas: tuple[float, float]
    loss: str

    @classmethod
    def from_config(cls, training: Mapping[str, Any], steps: int) -> Optimization:
        """From a resolved `training` node. Raises ConfigError for values that cannot be used."""
        loss = training.get("loss") or "sample_mean"
        if loss not in LOSSES:
            raise ConfigError(f"training.loss={loss}: unknown; use one of {', '.join(LOSSES)}")
        rate, vision, clip = (
            training["learning_rate"],
            training.get("vision_learning_rate"),
            training.get("clip"),
        )
        warmup, decay = float(training.get("warmup") or 0.0), float(training.get("weight_decay") or 0.0)
        for name, value in (("learning_rate", rate), ("vision_learning_rate", vision)):
            if value is not None and not float(value) > 0:
                raise ConfigError(f"training.{name}={value}: must be above 0")
        if not 0 <= warmup <= 1:
            raise ConfigError(f"training.warmup={warmup}: is a share of the steps, between 0 and 1")
        beta1, beta2 = training.get("betas") or (0.9, 0.999)
        return cls(
            steps=steps,
            global_batch=int(training["global_batch"]),
            learning_rate=float(rate),
            vision_learning_rate=None if vision is None else float(vision),
            warmup=warmup,
            weight_decay=decay,
            clip=float(clip) if clip else None,
            betas=(float(beta1), float(beta2)),
            loss=loss,
        )


def learning_rate_factor(step: int, *, steps: int, warmup: float) -> float:
    """Share of the peak learning rate in optimizer step `step` (from 0): linear warm-up, then a cosine to 0.

    The warm-up takes w = ceil(warmup * steps) steps with factors 1/(w+1) ... w/(w+1), so no step is lost to a
    rate of 0; step w has factor 1, and 0 would be reached one step after the last.
    """
    rise = math.ceil(warmup * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def parameter_groups(
    parameters: Iterable[nn.Parameter], components: ComponentMap, opt: Optimization
) -> list[dict[str, Any]]:
    """AdamW groups: the tower's parameters with `vision_learning_rate` where it is set, all others with the
    main rate.

    The projector belongs to the main group, also where it lies inside the tower's module (Qwen2.5-VL).
    """
    projector = {id(p) for m in components.modules("projector") for p in m.parameters()}
    tower = {id(p) for m in components.modules("vision") for p in m.parameters()} - projector
    own_rate = opt.vision_learning_rate is not None
    groups: dict[str, list[nn.Parameter]] = {"main": [], "vision": []}
    for p in parameters:
        groups["vision" if own_rate and id(p) in tower else "main"].append(p)
    rates = {"main": opt.learning_rate, "vision": opt.vision_learning_rate}
    return [{"params": found, "lr": rates[name], "name": name} for name, found in groups.items() if found]


class StageModule(pl.LightningModule):
    """Trains everything in `lmm.model` that requires a gradient, through `method.loss`.

    The loss of an optimizer step is the mean over its global batch of each sample's mean token cross-entropy:
    a micro-batch contributes the sum of its samples' means times world / global_batch. With `loss=token_mean`
    every answer token of the global batch weighs the same. `losses` collects one value per step.
    """

    def __init__(
        self,
        lmm: LMM,
        method: Method,
        opt: Optimization,
        compute: Compute,
        *,
        on_step: Callable[[int, dict[str, float]], bool | None],
        resume: Resume | None = None,
        saved: Saved | None = None,
        micro_batch: int = 0,
    ) -> None:
        """`on_step(step, figures)` hears of each finished step: loss, learning_rate, grad_norm,
        samples_per_s; returning True ends the stage there.
        With `resume` the state is saved as it says and when the process is asked to stop;
        `saved` is the state to go on from (its masters are in the model already).
        """
        super().__init__()
        self.automatic_optimization = False
        self.model = lmm.model
        self._lmm, self._method, self._opt, self._compute, self._on_step = lmm, method, opt, compute, on_step
        self._resume, self._saved, self._micro_batch = resume, saved, micro_batch
        self.losses: list[float] = list(saved.losses) if saved else []
        self._loss: Tensor | None = None
        self._tokens = 0
        self._since = time.perf_counter()

    def configure_optimizers(self) -> AdamW:
        """AdamW (fused: one pass over all tensors, the same bits every time); `_finish_step` sets its rates."""
        opt = self._opt
        moving = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = AdamW(
            parameter_groups(moving, self._lmm.components, opt),
            lr=opt.learning_rate,
            betas=opt.betas,
            eps=1e-8,
            weight_decay=opt.weight_decay,
            fused=True,
        )
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
        if self._saved is not None:
            restore_moments(self.model, optimizer, self._saved.tensors)
        return optimizer

    def on_train_start(self) -> None:
        """Lightning's own SIGTERM handler would stop between two micro-batches of one step: take ours back."""
        listen_again()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a micro-batch; an error that came instead of one stays as it is."""
        return batch.to(device) if isinstance(batch, MicroBatch) else batch

    def training_step(self, found: Any, batch_idx: int) -> None:
        """Add one micro-batch's gradient; after the last one of its global batch, take the optimizer step."""
        micro = checked(found)
        if self._saved is not None:  # as late as can be: what lies before this line may have drawn numbers
            restore_random_states(self._saved.random)
            self._saved = None
        with self._compute.autocast():
            means = self._method.loss(self._lmm, micro.batch, micro.labels)
        loss = self._scaled(means, micro.labels)
        self.manual_backward(loss)
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        if micro.slot.last:
            self._finish_step(micro.slot.step)

    def _scaled(self, means: Tensor, labels: Tensor) -> Tensor:
        if (
            self._opt.loss == "token_mean"
        ):  # divided by the number of tokens once that is known, in _finish_step
            tokens = (labels[:, 1:] != IGNORE).sum(dim=1)
            self._tokens += int(tokens.sum())
            return (means * tokens).sum()
        return means.sum() * (self.trainer.world_size / self._opt.global_batch)

    def _finish_step(self, step: int) -> None:
        optimizer = cast(Any, self.optimizers())
        moving = [p for group in optimizer.param_groups for p in group["params"]]
        assert self._loss is not None
        loss = float(self._loss)
        if self._opt.loss == "token_mean":
            loss /= self._tokens
            for p in moving:
                if p.grad is not None:
                    p.grad.div_(self._tokens)
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
            "grad_norm": float(norm),
            "samples_per_s": self._opt.global_batch / max(now - self._since, 1e-9),
        }
        self._loss, self._tokens, self._since = None, 0, now
        self.losses.append(loss)
        stop = self._on_step(step, figures)
        self._since = time.perf_counter()  # what was done on hearing of the step is no training time
        if stop:  # no state is saved here: a stage that goes on from one must come by this step to stop again
            self.trainer.should_stop = True
            return
        self._save_where_due(step + 1, optimizer)

    def _save_where_due(self, done: int, optimizer: Any) -> None:
        """Keep the state after `done` steps every so often and when the process must stop; stop there if asked."""
        if self._resume is None:
            return
        if asked() or (done % self._resume.every == 0 and done < self._opt.steps):
            state = {
                "losses": self.losses,
                "micro_batch": self._micro_batch,
                "layout": layout(self.trainer.world_size),
                "learning_rate": optimizer.param_groups[0]["lr"],
                "random": random_states(),
            }
            self._resume.safe.save(done, capture(self.model, optimizer.optimizer), state)
        safe_point()
