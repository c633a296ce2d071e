"""Every model that the contract is about: the three families and four models without a family of their own."""

from __future__ import annotations

import torch

from lmm_forget.models.loading import LMM
from tests.models.others import OTHERS, other_lmm
from tests.models.tiny import FAMILIES, tiny_lmm

SUBJECTS = (*FAMILIES, *OTHERS)


def subject(name: str, dtype: torch.dtype = torch.float32) -> LMM:
    """A tiny random model of `name` with two decoder layers and two tower layers, on the CPU, in eval mode."""
    return tiny_lmm(name, dtype=dtype) if name in FAMILIES else other_lmm(name, dtype=dtype)
