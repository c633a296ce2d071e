"""Measures what training really keeps (weights, gradients, optimizer states), to compare with a plan's bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from lmm_forget.training.callbacks.stage_callback import StageCallback
from lmm_forget.training.stage_module import StageModule


@dataclass(frozen=True)
class StateBytes:
    """Bytes of the storages behind each group of tensors, a storage counted once, where it is met first."""

    weights: int
    gradients: int
    optimizer: int
    extra_state: int

    @property
    def total(self) -> int:
        """All of them: what `TunePlan.state_bytes` plans."""
        return self.weights + self.gradients + self.optimizer + self.extra_state


def measure_state_bytes(model: nn.Module, optimizer: Optimizer, extra_state: Iterable[Tensor] = ()) -> StateBytes:
    """The storages of `model`'s parameters, their gradients, the optimizer's states, and `extra_state`."""
    parameters = list(model.parameters())
    optimizer_tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    counted_storages: set[int] = set()
    return StateBytes(
        weights=_count_new_bytes(parameters, counted_storages),
        gradients=_count_new_bytes((p.grad for p in parameters if p.grad is not None), counted_storages),
        optimizer=_count_new_bytes(optimizer_tensors, counted_storages),
        extra_state=_count_new_bytes(extra_state, counted_storages),
    )


class StateMemory(StageCallback):
    """Measures at the end of every optimizer step, while its gradients are still there.

    `measurements` keeps one StateBytes per step; Lightning's logger gets them as `state_bytes/<part>`. A sharded model
    is measured as the rank holds it.
    """

    def __init__(self) -> None:
        self.measurements: list[StateBytes] = []
        self._hook: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure behind `optimizer.step()`."""
        module = cast(StageModule, pl_module)

        def measure_step(optimizer: Optimizer, *_: Any) -> None:
            model, extra_state = module.loss_module.model, module.method.get_extra_state()
            self.measurements.append(measure_state_bytes(model, optimizer, extra_state))

        self._hook = module.optimizer.register_step_post_hook(measure_step)

    def on_optimizer_step_end(self, trainer: pl.Trainer, module: StageModule, metrics: Mapping[str, float]) -> None:
        """Log the step's measurement."""
        if trainer.logger is not None:
            parts = asdict(self.measurements[-1])
            trainer.logger.log_metrics({f"state_bytes/{part}": number for part, number in parts.items()})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop measuring: a fit that goes on after one that ran out of memory has the same optimizer."""
        self._hook.remove()


def _count_new_bytes(tensors: Iterable[Tensor], counted_storages: set[int]) -> int:
    """Bytes of the storages of `tensors` that are not in `counted_storages`; they are added to it."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in counted_storages:
            counted_storages.add(storage.data_ptr())
            total += storage.nbytes()
    return total
