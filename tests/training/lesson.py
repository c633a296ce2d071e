"""A small lesson for tiny models: samples whose answers have one to four letters, a plan, and one call that fits."""

from __future__ import annotations

from typing import Any

import torch

from lmm_forget.models.loading import LMM
from lmm_forget.models.weights import model_hashes
from lmm_forget.recipes.method import build_method, parameter_dtypes
from lmm_forget.recipes.selection import TunePlan, load_recipe, make_plan, rules_from_config
from lmm_forget.training.batches import TrainItem
from lmm_forget.training.determinism import derived_seed
from lmm_forget.training.fit import FitResult, fit
from tests.models.subjects import subject
from tests.models.tiny import picture

TRAINING = {
    "global_batch": 4,
    "learning_rate": 1e-3,
    "vision_learning_rate": None,
    "epochs": 1,
    "max_steps": None,
    "warmup": 0.03,
    "weight_decay": 0.0,
    "clip": 1.0,
}
HARDWARE = {"accelerator": "cpu", "devices": 1, "nodes": 1, "precision": "bf16", "threads": 1, "workers": 0}


def samples(n: int = 12) -> list[TrainItem]:
    """`n` samples with one small picture each and answers of different length."""
    return [TrainItem(f"s{i}", f"Number {i}?", [picture(seed=i)], "wxyz"[: 1 + i % 4]) for i in range(n)]


def plan_for(lmm: LMM, recipe: str) -> TunePlan:
    """The plan of a packaged recipe."""
    return make_plan(lmm.components, recipe, rules_from_config(load_recipe(recipe)))


def teach(
    recipe: str = "sa_proj",
    *,
    family: str = "llava_onevision",
    dtype: torch.dtype = torch.float32,
    items: Any = None,
    training: dict[str, Any] | None = None,
    hardware: dict[str, Any] | None = None,
    seed: int = 0,
    task: str = "lesson",
    **more: Any,
) -> tuple[LMM, TunePlan, FitResult, dict[str, torch.Tensor]]:
    """Teach a fresh tiny model: (model after the stage, plan, result of the fit, delta)."""
    lmm = subject(family, dtype)
    method, dtypes = build_method(load_recipe(recipe)), parameter_dtypes(lmm.model)
    plan = method.planned(lmm.model, plan_for(lmm, recipe))
    method.prepare(lmm, plan, seed=derived_seed(seed, task))
    result = fit(
        lmm,
        plan,
        method,
        samples() if items is None else items,
        training={**TRAINING, **(training or {})},
        hardware={**HARDWARE, **(hardware or {})},
        seed=seed,
        task=task,
        **more,
    )
    return lmm, plan, result, method.finish(lmm, plan, dtypes)


def hashes_after(**kwargs: Any) -> dict[str, str]:
    """Hash of every tensor of the stage model that `teach(**kwargs)` leaves."""
    return model_hashes(teach(**kwargs)[0].model)
