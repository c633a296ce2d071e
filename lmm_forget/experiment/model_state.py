"""The model as a job has reached it: all that changes while its stages run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lmm_forget.distributed.process_group import ProcessGroup
from lmm_forget.models.loading import LMM
from lmm_forget.models.weight_hashes import hash_weights
from lmm_forget.recipes.method_state import MethodState
from lmm_forget.store import Store


class ModelState:
    """Tensor hashes, deltas that are not in `lmm` yet, and what the last stage's method hands on.

    Tensors and method state of a stage that came from the store are read only when something is to be computed.
    """

    def __init__(
        self, lmm: LMM, store: Store, process_group: ProcessGroup, base_tensor_hashes: Mapping[str, str]
    ) -> None:
        """`lmm` is the base, with these tensor hashes by name."""
        self._lmm, self._store, self._process_group = lmm, store, process_group
        self._tensor_hashes = dict(base_tensor_hashes)
        self._pending_deltas: dict[str, list[str]] = {}
        """Stage key -> names of the tensors to be read from its delta, in the order of the stages."""
        self._method_state: MethodState | None = None
        self._method_state_digest: str | None = None
        self._pending_state_key: str | None = None
        """The stage whose method state is to be read from the store before the next stage is trained."""

    @property
    def tensor_hashes(self) -> Mapping[str, str]:
        """Hash of every tensor by name."""
        return self._tensor_hashes

    @property
    def weights_hash(self) -> str:
        """Hash of the whole model."""
        return hash_weights(self._tensor_hashes)

    @property
    def method_state_digest(self) -> str | None:
        """Digest of what the last stage's method hands on; None where it hands on nothing."""
        return self._method_state_digest

    def is_same_as_recorded(self, record: Mapping[str, Any]) -> bool:
        """Whether a stage's record leads to this model and this method state."""
        return (record["weights_hash"], record.get("method_state")) == (self.weights_hash, self._method_state_digest)

    def use_trained_stage(self, changed_tensor_hashes: Mapping[str, str], method_state: MethodState | None) -> None:
        """Take over a stage that was just trained: its tensors are in the model."""
        self._tensor_hashes.update(changed_tensor_hashes)
        self._method_state, self._pending_state_key = method_state, None
        self._method_state_digest = None if method_state is None else method_state.digest

    def use_cached_stage(self, record: Mapping[str, Any]) -> None:
        """Take over a recorded stage; its tensors and its method state are read when they are needed."""
        key, names = record["key"], list(record["tensors"])
        self._tensor_hashes.update(record["tensors"])
        replaced = set(names) - set(record.get("lowrank") or ())
        self._pending_deltas.pop(key, None)
        for earlier_key, earlier_names in self._pending_deltas.items():
            self._pending_deltas[earlier_key] = [name for name in earlier_names if name not in replaced]
        self._pending_deltas[key] = names
        self._method_state, self._method_state_digest = None, record.get("method_state")
        self._pending_state_key = key if self._method_state_digest is not None else None

    def load_pending_deltas(self) -> None:
        """Put the tensors of stages from the store into the model, each from the last stage that replaced it.

        All ranks must call it. Raises CorruptEntryError if a delta is not what was recorded.
        """
        self._process_group.raise_on_any_rank(self._load_pending_deltas_here)

    def _load_pending_deltas_here(self) -> None:
        parameters = dict(self._lmm.model.named_parameters())
        with torch.no_grad():
            for key, names in self._pending_deltas.items():
                if names:
                    for name, tensor in self._store.iterate_delta_tensors(key, names, parameters):
                        parameters[name].copy_(tensor)
        self._pending_deltas.clear()

    def load_method_state(self) -> MethodState | None:
        """What the last stage's method hands on. All ranks must call it. Raises CorruptEntryError as above."""
        return self._process_group.raise_on_any_rank(self._load_method_state_here)

    def _load_method_state_here(self) -> MethodState | None:
        if self._pending_state_key is not None:
            tensors, values = self._store.load_method_state(self._pending_state_key) or ({}, {})
            self._method_state, self._pending_state_key = MethodState(tensors, values), None
        return self._method_state
