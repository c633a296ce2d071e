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
    held: int

    @property
    def total(self) -> int:
        """All of them: what `TunePlan.state_bytes` plans."""
        return self.weights + self.gradients + self.optimizer + self.held


def state_bytes(model: nn.Module, optimizer: Optimizer, held: Iterable[Tensor] = ()) -> StateBytes:
    """The storages of `model`'s parameters, their gradients, the optimizer's states, and tensors in `held`."""
    parameters = list(model.parameters())
    states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    seen: set[int] = set()
    return StateBytes(
        weights=_fresh(parameters, seen),
        gradients=_fresh((p.grad for p in parameters if p.grad is not None), seen),
        optimizer=_fresh(states, seen),
        held=_fresh(held, seen),
    )


@contextmanager
def watch_states(model: nn.Module, method: Method) -> Iterator[list[StateBytes]]:
    """Measure at the end of every optimizer step in the block, while its gradients are still there."""
    found: list[StateBytes] = []

    def measure(optimizer: Optimizer, *_: Any) -> None:
        found.append(state_bytes(model, optimizer, method.held()))

    handle = register_optimizer_step_post_hook(measure)
    try:
        yield found
    finally:
        handle.remove()


def _fresh(tensors: Iterable[Tensor], seen: set[int]) -> int:
    """Bytes of the storages of `tensors` that are not in `seen`; they are put into it."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total
