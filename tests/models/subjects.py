"""Every model that the contract is about.

Tiny random models of the three families and of four types without a family of their own, and the three models that
travel with the package, whose tokenizers, chat templates and weights are what people meet first.
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from lmm_forget.config import find_conf_dir
from lmm_forget.models.loading import LMM, load_model
from tests.models.others import OTHERS, other_lmm
from tests.models.tiny import FAMILIES, tiny_lmm

PACKAGED = ("tiny_onevision", "tiny_next", "tiny_qwen2_5_vl")
RANDOM = (*FAMILIES, *OTHERS)
SUBJECTS = (*RANDOM, *PACKAGED)


def subject(name: str, dtype: torch.dtype = torch.float32) -> LMM:
    """The model `name` on the CPU, in eval mode; the random ones have two decoder layers and two tower layers."""
    if name in PACKAGED:
        spec = yaml.safe_load((Path(find_conf_dir()) / "model" / f"{name}.yaml").read_text("utf-8"))
        return load_model({**spec, "dtype": str(dtype).removeprefix("torch.")})
    return tiny_lmm(name, dtype=dtype) if name in FAMILIES else other_lmm(name, dtype=dtype)
