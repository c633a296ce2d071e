"""What training really keeps: the bytes of weights, gradients and optimizer states, to hold against a plan's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

if TYPE_CHECKING:
    from lmm_forget.recipes.method import Method


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
    """The storages of `model`'s parameters, their gradients, the optimizer's states, and tensors in `held`."""
    parameters = list(model.parameters())
    optimizer_tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    counted_storages: set[int] = set()
    return StateBytes(
        weights=_count_new_bytes(parameters, counted_storages),
        gradients=_count_new_bytes((p.grad for p in parameters if p.grad is not None), counted_storages),
        optimizer=_count_new_bytes(optimizer_tensors, counted_storages),
        extra_state=_count_new_bytes(extra_state, counted_storages),
    )


@contextmanager
def record_state_bytes(model: nn.Module, method: Method) -> Iterator[list[StateBytes]]:
    """Measure at the end of every optimizer step in the block, while its gradients are still there."""
    measurements: list[StateBytes] = []

    def measure_step(optimizer: Optimizer, *_: Any) -> None:
        measurements.append(measure_state_bytes(model, optimizer, method.get_extra_state()))

    handle = register_optimizer_step_post_hook(measure_step)
    try:
        yield measurements
    finally:
        handle.remove()


def _count_new_bytes(tensors: Iterable[Tensor], counted_storages: set[int]) -> int:
    """Bytes of the storages of `tensors` that are not in `seen`; they are put into it."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in counted_storages:
            counted_storages.add(storage.data_ptr())
            total += storage.nbytes()
    return total
