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


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed from `seed` and names (task, epoch, purpose); unrelated for every combination."""
    text = "\0".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices), whatever state they were in."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def prefer_deterministic_kernels(device_type: str) -> Iterator[None]:
    """On CUDA prefer deterministic kernels (torch warns where there is none); CPU kernels repeat by
    themselves.

    torch's filling of uninitialised memory stays off: it costs time and hides nothing that reaches a result.
    """
    if device_type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    deterministic_settings: Any = torch.utils.deterministic
    previous_settings = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic_settings.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic_settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(previous_settings[0], warn_only=previous_settings[1])
        deterministic_settings.fill_uninitialized_memory = previous_settings[2]
