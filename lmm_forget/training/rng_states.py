"""The states of every random generator that training draws from: captured, put back, written as JSON."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RngStates:
    """States of Python's, NumPy's and torch's generators; those of all CUDA devices where CUDA is in use."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch: Tensor
    cuda: tuple[Tensor, ...] = ()

    @classmethod
    def capture(cls) -> RngStates:
        """The states as they are now."""
        cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        numpy_state: Any = np.random.get_state()
        return cls(random.getstate(), numpy_state, torch.get_rng_state(), tuple(cuda_states))

    def restore(self) -> None:
        """Let all generators go on from these states; those of CUDA only where as many devices are here."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda and torch.cuda.is_available() and len(self.cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(list(self.cuda))

    def to_json(self) -> dict[str, Any]:
        """The states as JSON holds them; `from_json` reads them."""
        version, numbers, gauss = self.python
        kind, keys, position, has_gauss, cached = self.numpy
        states: dict[str, Any] = {
            "python": [version, list(numbers), gauss],
            "numpy": [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
            "torch": _encode_base64(self.torch),
        }
        if self.cuda:
            states["cuda"] = [_encode_base64(state) for state in self.cuda]
        return states

    @classmethod
    def from_json(cls, states: Mapping[str, Any]) -> RngStates:
        """What `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        version, numbers, gauss = states["python"]
        kind, keys, position, has_gauss, cached = states["numpy"]
        return cls(
            (version, tuple(numbers), gauss),
            (kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached),
            _decode_base64(states["torch"]),
            tuple(_decode_base64(text) for text in states.get("cuda", ())),
        )


@contextmanager
def preserve_rng_states() -> Iterator[None]:
    """After the block every generator goes on as if nobody had drawn from it."""
    states = RngStates.capture()
    try:
        yield
    finally:
        states.restore()


def _encode_base64(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _decode_base64(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
