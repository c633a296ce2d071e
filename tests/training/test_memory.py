"""Planned memory against the storages that are really there at the end of an optimizer step."""

from __future__ import annotations

import pytest
import torch

from lmm_forget.models.loading import LMM
from lmm_forget.recipes.method import build_method
from lmm_forget.recipes.selection import TunePlan, load_recipe
from lmm_forget.training.callbacks.memory import StateBytes, StateMemory, measure_state_bytes
from lmm_forget.training.stage_config import TrainStageConfig
from lmm_forget.training.train_stage import train_stage
from tests.models.tiny import tiny_lmm
from tests.recipes.stage_calls import start_stage
from tests.training.lesson import HARDWARE, TRAINING, plan_for, samples


def stage(recipe: str, dtype: torch.dtype, **sizes: int) -> tuple[LMM, TunePlan, list[StateBytes]]:
    """A tiny model taught with `recipe`: the model (not finished), its plan, and what was there after each step."""
    lmm = tiny_lmm("llava_onevision", dtype=dtype, **sizes)
    method = build_method(load_recipe(recipe))
    plan = method.adapt_plan(lmm.model, plan_for(lmm, recipe))
    start_stage(method, lmm, plan)
    memory = StateMemory()
    train_stage(
        lmm,
        plan,
        method,
        samples(8),
        TrainStageConfig(
            training_config=TRAINING,
            hardware_config=HARDWARE,
            seed=0,
            task="x",
            extra_callbacks=[memory],
        ),
    )
    assert len(memory.measurements) == 2
    return lmm, plan, memory.measurements


@pytest.mark.parametrize("recipe", ["sa_proj", "mlp_gateup", "llm", "full", "lora", "lwf", "wise_ft"])
def test_planned_state_bytes_are_the_real_ones(recipe: str) -> None:
    _, plan, found = stage(recipe, torch.bfloat16, hidden_size=64, intermediate_size=160)
    real = found[-1]
    assert real.total == pytest.approx(plan.state_bytes, rel=0.01)
    trained = plan.parameter_counts["trainable"]
    assert real.gradients == 4 * trained
    assert real.optimizer == pytest.approx(8 * trained, rel=0.03)  # and a step count per tensor
    assert real.extra_state == plan.extra_state_bytes


@pytest.mark.parametrize("recipe", ["sa_proj", "lwf"])
def test_frozen_half_precision_stays_what_it_is(recipe: str) -> None:
    """What autocast casts by itself is not widened for a stage; norms and convolutions are, and they are few."""
    lmm, plan, found = stage(recipe, torch.float16, hidden_size=256, intermediate_size=512)
    assert found[-1].total == pytest.approx(plan.state_bytes, rel=0.01)
    assert {p.dtype for p in lmm.model.parameters() if not p.requires_grad} == {torch.float16}


def test_a_shared_storage_counts_once() -> None:
    model = torch.nn.Linear(4, 4, bias=False)
    twin = torch.nn.Linear(4, 4, bias=False)
    twin.weight = model.weight
    both = torch.nn.Sequential(model, twin)
    both(torch.ones(1, 4)).sum().backward()
    optimizer = torch.optim.SGD(both.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()
    found = measure_state_bytes(both, optimizer, extra_state=[model.weight.data, torch.zeros(3)])
    assert (found.weights, found.gradients, found.optimizer, found.extra_state) == (64, 64, 64, 12)
