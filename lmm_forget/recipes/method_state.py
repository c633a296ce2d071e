"""What a method hands on from one stage to the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from lmm_forget.models.weight_hashes import hash_state


@dataclass(frozen=True)
class MethodState:
    """Named tensors and JSON-serialisable values (Fisher matrices, subspaces, counts …); both are left unchanged.

    Tensors are kept on the CPU, values as JSON gives them back (a tuple is a list), so that a state is the same whether
    it was handed on in memory or read from the store.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for values that JSON does not know."""
        on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in self.tensors.items()}
        object.__setattr__(self, "tensors", on_cpu)
        object.__setattr__(self, "values", json.loads(json.dumps(dict(self.values), allow_nan=False)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all of it: an ingredient of the next stage's key."""
        return hash_state(self.tensors, self.values)
