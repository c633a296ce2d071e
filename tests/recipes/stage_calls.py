"""Begin and end a stage of a method as a job does, with what a test does not care about filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lmm_forget.experiment.stage_training import make_compute_precision
from lmm_forget.models.loading import LMM
from lmm_forget.recipes.method import Method, StageContext, get_parameter_dtypes
from lmm_forget.recipes.method_state import MethodState
from lmm_forget.recipes.selection import TunePlan


def start_stage(
    method: Method,
    lmm: LMM,
    plan: TunePlan,
    seed: int = 0,
    train_set: Sequence[Any] = (),
    state: MethodState | None = None,
) -> None:
    """Begin a stage on the model as it is."""
    method.start_stage(StageContext(plan, get_parameter_dtypes(lmm.model), seed=seed), lmm, train_set, state)


def end_stage(
    method: Method, lmm: LMM, plan: TunePlan, base_dtypes: Mapping[str, torch.dtype], **more: Any
) -> dict[str, torch.Tensor]:
    """End it; returns the delta."""
    more.setdefault("use_compute_precision", make_compute_precision(lmm, "bf16"))
    return dict(method.end_stage(StageContext(plan, base_dtypes, **more), lmm).delta)  # type: ignore[arg-type]
