"""Same seed, same bytes: seeds made of names instead of what ran before, and kernels that repeat."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed from `seed` and names (task, epoch, purpose); unrelated for every combination."""
    text = "\0".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices), whatever state they were in."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generators() -> tuple[Any, ...]:
    """States of Python's, NumPy's and torch's generators (all CUDA devices in use), for `put_back`."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def put_back(states: tuple[Any, ...]) -> None:
    """Let all generators go on where `generators` found them."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if states[3]:
        torch.cuda.set_rng_state_all(states[3])


@contextmanager
def repeatable_kernels(device_type: str) -> Iterator[None]:
    """On CUDA prefer deterministic kernels (torch warns where there is none); CPU kernels repeat by
    themselves.

    torch's filling of uninitialised memory stays off: it costs time and hides nothing that reaches a result.
    """
    if device_type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    switches: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        switches.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    switches.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        switches.fill_uninitialized_memory = before[2]
