"""FSDP2: what is trained, cut over the ranks; frozen tensors stay whole on each of them, in their own dtype.

The stage's model itself is never sharded: it is what probes look at and what is evaluated, by every rank for itself. A
copy of its modules is trained that shares all frozen tensors with it, so that only what moves exists in parts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from lmm_forget.training.resume import full

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from lmm_forget.models.loading import LMM
    from lmm_forget.recipes.method import Method


class Lesson(nn.Module):
    """A model with a method's loss on top: whatever the loss touches runs inside this one module's forward."""

    def __init__(self, lmm: LMM, method: Method) -> None:
        super().__init__()
        self.model = lmm.model
        self._lmm, self._method = lmm, method

    def forward(self, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Mean token cross-entropy of each sample, [B]; see `Method.loss`."""
        return self._method.loss(self._lmm, batch, labels)


class Sharded:
    """The training copy of `lmm.model`; while it exists, the trainable tensors of `lmm.model` itself are empty.

    One unit per decoder or tower layer with anything to train, the rest in one more. `lesson` is the module to call.
    """

    def __init__(self, lmm: LMM, method: Method, mesh: DeviceMesh) -> None:
        model = cast(nn.Module, lmm.model)
        self._own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._masters = {name: p.dtype for name, p in self._own.items()}
        frozen = {p for p in model.parameters() if not p.requires_grad}
        parts = lmm.components.parts
        blocks = {id(block) for block in chain(parts.language_layers, parts.tower_layers)}
        units = [
            path
            for path, module in model.named_modules()
            if id(module) in blocks and any(p.requires_grad for p in module.parameters())
        ]
        shared: dict[int, Any] = {id(t): t for t in chain(model.parameters(), model.buffers())}
        twin = copy.deepcopy(model, shared)
        self.lesson = Lesson(replace(lmm, model=cast(Any, twin)), method)
        for path in units:
            fully_shard(twin.get_submodule(path), mesh=mesh, ignored_params=frozen)
        fully_shard(self.lesson, mesh=mesh, ignored_params=frozen, reshard_after_forward=False)
        self._empty()

    @property
    def model(self) -> nn.Module:
        """The sharded copy; names of its parameters are those of the model."""
        return self.lesson.model

    def fill(self, made: Callable[[str, Tensor], Tensor] | None = None) -> None:
        """Give the model its trainable tensors whole, put together one by one; all ranks must call it.

        `made(name, master)` is what is wanted of each of them (None: the master itself).
        """
        parts = dict(self.model.named_parameters())
        for name, p in self._own.items():
            whole = full(parts[name])
            p.data = whole if made is None else made(name, whole)

    @contextmanager
    def filled(self, made: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """The model with its trainable tensors (see `fill`), for the block; all ranks must enter it."""
        self.fill(made)
        try:
            yield
        finally:
            self._empty()

    def _empty(self) -> None:
        for name, p in self._own.items():
            p.data = p.data.new_empty(0, dtype=self._masters[name])
