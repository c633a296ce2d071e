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

from lmm_forget.training.loss_module import LossModule
from lmm_forget.training.train_state import gather_full_tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from lmm_forget.models.loading import LMM
    from lmm_forget.recipes.method import Method


class ShardedModel:
    """The training copy of `lmm.model`; while it exists, the trainable tensors of `lmm.model` itself are empty.

    One unit per decoder or tower layer with anything to train, the rest in one more. Call `loss_module`.
    """

    def __init__(self, lmm: LMM, method: Method, mesh: DeviceMesh) -> None:
        model = cast(nn.Module, lmm.model)
        self._trainable_parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._master_dtypes = {name: p.dtype for name, p in self._trainable_parameters.items()}
        frozen = {p for p in model.parameters() if not p.requires_grad}
        parts = lmm.components.parts
        layer_ids = {id(block) for block in chain(parts.language_layers, parts.tower_layers)}
        unit_paths = [
            path
            for path, module in model.named_modules()
            if id(module) in layer_ids and any(p.requires_grad for p in module.parameters())
        ]
        shared: dict[int, Any] = {id(t): t for t in chain(model.parameters(), model.buffers())}
        model_copy = copy.deepcopy(model, shared)
        self.loss_module = LossModule(replace(lmm, model=cast(Any, model_copy)), method)
        for path in unit_paths:
            fully_shard(model_copy.get_submodule(path), mesh=mesh, ignored_params=frozen)
        fully_shard(self.loss_module, mesh=mesh, ignored_params=frozen, reshard_after_forward=False)
        self._release_parameters()

    @property
    def model(self) -> nn.Module:
        """The sharded copy; names of its parameters are those of the model."""
        return self.loss_module.model

    def gather_into_model(self, transform: Callable[[str, Tensor], Tensor] | None = None) -> None:
        """Give the model its trainable tensors whole, gathered one by one; all ranks must call it.

        `transform(name, master)` is what the model gets of each of them (None: the master itself).
        """
        sharded_parameters = dict(self.model.named_parameters())
        for name, p in self._trainable_parameters.items():
            full_tensor = gather_full_tensor(sharded_parameters[name])
            p.data = full_tensor if transform is None else transform(name, full_tensor)

    @contextmanager
    def gathered_model(self, transform: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """The model with its trainable tensors (see `gather_into_model`), for the block; all ranks must enter it."""
        self.gather_into_model(transform)
        try:
            yield
        finally:
            self._release_parameters()

    def _release_parameters(self) -> None:
        for name, p in self._trainable_parameters.items():
            p.data = p.data.new_empty(0, dtype=self._master_dtypes[name])
