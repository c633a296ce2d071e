"""A small lesson for tiny models: samples whose answers have one to four letters, a plan, and one call that fits."""

from __future__ import annotations

from typing import Any

import torch

from lmm_forget.models.loading import LMM
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.recipes.method import build_method, get_parameter_dtypes
from lmm_forget.recipes.selection import TunePlan, load_recipe, make_tune_plan, parse_rules
from lmm_forget.training.determinism import derive_seed
from lmm_forget.training.micro_batches import TrainItem
from lmm_forget.training.stage_config import FitResult, TrainStageConfig
from lmm_forget.training.train_stage import train_stage
from tests.models.subjects import subject
from tests.models.tiny import picture
from tests.recipes.stage_calls import end_stage, start_stage

TRAINING = {
    "global_batch_size": 4,
    "learning_rate": 1e-3,
    "vision_learning_rate": None,
    "epochs": 1,
    "max_steps": None,
    "warmup_ratio": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}
HARDWARE = {"accelerator": "cpu", "devices": 1, "nodes": 1, "precision": "bf16", "threads": 1, "num_workers": 0}


def samples(n: int = 12) -> list[TrainItem]:
    """`n` samples with one small picture each and answers of different length."""
    return [TrainItem(f"s{i}", f"Number {i}?", [picture(seed=i)], "wxyz"[: 1 + i % 4]) for i in range(n)]


def plan_for(lmm: LMM, recipe: str) -> TunePlan:
    """The plan of a packaged recipe."""
    return make_tune_plan(lmm.components, recipe, parse_rules(load_recipe(recipe)))


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
    method, dtypes = build_method(load_recipe(recipe)), get_parameter_dtypes(lmm.model)
    plan = method.adapt_plan(lmm.model, plan_for(lmm, recipe))
    start_stage(method, lmm, plan, seed=derive_seed(seed, task))
    result = train_stage(
        lmm,
        plan,
        method,
        samples() if items is None else items,
        TrainStageConfig(
            training_config={**TRAINING, **(training or {})},
            hardware_config={**HARDWARE, **(hardware or {})},
            seed=seed,
            task=task,
            **more,
        ),
    )
    return lmm, plan, result, end_stage(method, lmm, plan, dtypes)


def hashes_after(**kwargs: Any) -> dict[str, str]:
    """Hash of every tensor of the stage model that `teach(**kwargs)` leaves."""
    return hash_parameters(teach(**kwargs)[0].model)
