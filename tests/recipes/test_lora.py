"""LoRA: what an adapter is at first, what moves, and that nothing of it is left in the stage model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.models.loading import LMM
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.recipes.lora import LoRA
from lmm_forget.recipes.method import build_method, get_parameter_dtypes
from lmm_forget.recipes.selection import (
    SelectionRule,
    TunePlan,
    load_recipe,
    make_tune_plan,
    parse_rules,
)
from lmm_forget.recipes.tuning import tune
from lmm_forget.training.stage_config import TrainStageConfig
from lmm_forget.training.train_stage import train_stage
from tests.models.tiny import FAMILIES, tiny_lmm
from tests.recipes.stage_calls import end_stage, start_stage
from tests.recipes.test_plain import encoded
from tests.training.lesson import HARDWARE, TRAINING, samples

MLP = [SelectionRule("language", ("gate_proj", "up_proj", "down_proj"))]
SMALL = {"rank": 4, "alpha": 8}


def planned(lmm: LMM, method: LoRA, rules: list[SelectionRule] | None = None) -> TunePlan:
    return method.adapt_plan(lmm.model, make_tune_plan(lmm.components, "lora", rules or MLP))


def logits(lmm: LMM, autocast: bool = False) -> torch.Tensor:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return lmm.model(**encoded(lmm).tensors).logits


def taught(family: str, method: LoRA, dtype: torch.dtype, **training: Any) -> tuple[LMM, TunePlan, Any]:
    """A tiny model in the middle of a stage: trained, not yet merged."""
    lmm = tiny_lmm(family, dtype=dtype)
    plan = planned(lmm, method)
    start_stage(method, lmm, plan, seed=1)
    settings = {**TRAINING, "learning_rate": 1e-2, "epochs": 3, **training}
    return (
        lmm,
        plan,
        train_stage(
            lmm,
            plan,
            method,
            samples(),
            TrainStageConfig(training_config=settings, hardware_config=HARDWARE, seed=0, task="x"),
        ),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_at_first_the_model_says_what_the_base_says(family: str, dtype: torch.dtype) -> None:
    lmm = tiny_lmm(family, dtype=dtype)
    before, before_autocast = logits(lmm), logits(lmm, autocast=True)
    method = LoRA(**SMALL)
    start_stage(method, lmm, planned(lmm, method))
    assert torch.equal(logits(lmm), before)
    assert torch.equal(logits(lmm, autocast=True), before_autocast)


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_adapters_of_the_plan_get_a_gradient(family: str) -> None:
    lmm = tiny_lmm(family, dtype=torch.bfloat16)
    method = LoRA(**SMALL)
    plan = planned(lmm, method)
    start_stage(method, lmm, plan)
    for layer in lmm.model.modules():
        if hasattr(layer, "lora_B"):  # with B at zero A would get a gradient of zeros
            nn.init.normal_(layer.lora_B["stage"].weight)
    e = encoded(lmm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        method.loss(lmm, e.tensors, e.labels).sum().backward()
    moving = {n: p for n, p in lmm.model.named_parameters() if p.requires_grad}
    bases = {n.replace(".lora_A.stage", "").replace(".lora_B.stage", "") for n in moving}
    assert bases == set(plan.trainable) == set(plan.adapters)
    assert len(moving) == 2 * len(plan.adapters)
    assert sum(p.numel() for p in moving.values()) == plan.parameter_counts["trainable"]
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.any() for p in moving.values())
    assert all(p.grad is None for n, p in lmm.model.named_parameters() if n not in moving)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_moves_what_was_planned_and_leaves_an_ordinary_model(family: str, dtype: torch.dtype) -> None:
    fresh = tiny_lmm(family, dtype=dtype)
    before, names, tree = hash_parameters(fresh.model), list(fresh.model.state_dict()), str(fresh.model)
    attributes = set(vars(fresh.model))
    method = LoRA(**SMALL)
    lmm, plan, result = taught(family, method, dtype)
    assert sum(result.step_losses[-3:]) < sum(result.step_losses[:3])
    with_adapters = logits(lmm)
    delta = end_stage(method, lmm, plan, get_parameter_dtypes(fresh.model))

    assert list(lmm.model.state_dict()) == names and str(lmm.model) == tree
    assert set(vars(lmm.model)) == attributes
    assert get_parameter_dtypes(lmm.model) == get_parameter_dtypes(fresh.model)
    assert not any(p.requires_grad for p in lmm.model.parameters())
    after = hash_parameters(lmm.model)
    assert {n for n in after if after[n] != before[n]} == set(plan.trainable) == set(delta)
    parameters = dict(lmm.model.named_parameters())
    assert all(torch.equal(delta[n], parameters[n]) and delta[n].dtype == dtype for n in delta)
    merged = logits(lmm)
    apart = (merged - with_adapters).float().abs().max()
    moved = (merged - logits(fresh)).float().abs().max()
    assert apart <= (1e-5 if dtype == torch.float32 else 0.1) * moved


def test_merging_rounds_once_from_fp32() -> None:
    method = LoRA(**SMALL)
    lmm, plan, _ = taught("llava_onevision", method, torch.bfloat16)
    layer = lmm.components.parts.language_layers[0].mlp.up_proj
    exact = layer.base_layer.weight.double() + 2 * (
        layer.lora_B["stage"].weight.double() @ layer.lora_A["stage"].weight.double()
    )
    delta = end_stage(
        method, lmm, plan, {n: torch.bfloat16 for n, _ in tiny_lmm("llava_onevision").model.named_parameters()}
    )
    found = delta["model.language_model.layers.0.mlp.up_proj.weight"]
    assert (found != exact.float().bfloat16()).float().mean() < 1e-3  # fp32 sums may fall on the other side of a tie


def test_the_start_depends_on_the_seed_alone() -> None:
    def start(seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        lmm, method = tiny_lmm("qwen2_5_vl", dtype=dtype), LoRA(**SMALL)
        start_stage(method, lmm, planned(lmm, method), seed=seed)
        return {n: p.detach() for n, p in lmm.model.named_parameters() if p.requires_grad}

    state = torch.get_rng_state()
    one = start(2**62 + 5, torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = start(2**62 + 5, torch.bfloat16), start(6, torch.float32)
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)


def test_the_plan_counts_adapters_and_stores_whole_tensors() -> None:
    lmm, method = tiny_lmm("llava_onevision", dtype=torch.bfloat16), LoRA(**SMALL)
    plan = planned(lmm, method)
    adapter = 2 * 3 * 4 * (32 + 48)
    merged = 2 * 3 * 32 * 48
    every = sum(p.numel() for p in lmm.model.parameters())
    data = plan.to_json()
    assert data["trainable"] == adapter == data["rules"][0]["parameters"]
    assert data["merged"] == merged and data["delta_bytes"] == 2 * merged
    assert data["merged"] + data["frozen"] + data["unused"] == every
    assert data["state_bytes"] == 16 * adapter + 2 * every


def test_a_rank_no_smaller_than_the_weight_is_lowered_at_the_same_scale() -> None:
    lmm, method = tiny_lmm("llava_onevision"), LoRA(rank=256, alpha=32)
    plan = planned(lmm, method)
    assert plan.parameter_counts["trainable"] == 6 * (32 * 48 // 80) * 80 <= plan.parameter_counts["merged"]
    start_stage(method, lmm, plan)
    layer = lmm.components.parts.language_layers[1].mlp.down_proj
    assert layer.r["stage"] == 19 and layer.scaling["stage"] == pytest.approx(32 / 256)


def test_any_rule_works_and_biases_stay() -> None:
    lmm, method = tiny_lmm("llava_onevision"), LoRA(**SMALL)
    rules = [SelectionRule("vision"), SelectionRule("projector"), SelectionRule("language")]
    plan = planned(lmm, method, rules)
    assert "lm_head.weight" in plan.trainable
    assert not any(n.endswith("bias") or "norm" in n or "embed" in n for n in plan.trainable)
    assert {plan.parameters[n].component for n in plan.trainable} == {"vision", "projector", "language"}
    before = hash_parameters(lmm.model)
    dtypes = get_parameter_dtypes(lmm.model)
    start_stage(method, lmm, plan)
    settings = {**TRAINING, "learning_rate": 1e-2}
    train_stage(
        lmm,
        plan,
        method,
        samples(8),
        TrainStageConfig(training_config=settings, hardware_config=HARDWARE, seed=0, task="x"),
    )
    end_stage(method, lmm, plan, dtypes)
    after = hash_parameters(lmm.model)
    assert {n for n in after if after[n] != before[n]} == set(plan.trainable)


def test_a_tied_head_gets_no_adapter() -> None:
    lmm, method = tiny_lmm("llava_onevision", tie_word_embeddings=True), LoRA(**SMALL)
    plan = planned(lmm, method, [SelectionRule("language")])
    assert not any("lm_head" in n or "embed" in n for n in plan.trainable)


def test_dropout_works_in_training_only_on_every_adapter() -> None:
    lmm, method = tiny_lmm("llava_onevision"), LoRA(**SMALL, dropout=0.5)
    plan = planned(lmm, method, [SelectionRule("language")])
    start_stage(method, lmm, plan)
    dropouts = [m for m in lmm.model.modules() if isinstance(m, nn.Dropout) and m.p == 0.5]
    assert len(dropouts) == len(plan.adapters)
    seen: set[int] = set()
    for module in dropouts:
        module.register_forward_hook(lambda m, *_: seen.add(id(m)) if m.training else None)
    assert torch.equal(logits(lmm), logits(lmm)) and not seen
    train_stage(
        lmm,
        plan,
        method,
        samples(4),
        TrainStageConfig(training_config=TRAINING, hardware_config=HARDWARE, seed=0, task="x"),
    )
    assert len(seen) == len(dropouts)


def test_compat_projector_trains_the_projector_whole() -> None:
    lmm, method = tiny_lmm("llava_onevision", dtype=torch.bfloat16), LoRA(**SMALL, compat=["projector"])
    plan = planned(lmm, method)
    projector = {i.name for i in lmm.components if i.component == "projector"}
    assert projector <= set(plan.trainable) and not projector & set(plan.adapters)
    assert plan.parameter_counts["trainable"] == sum(r.num_parameters for r in plan.rule_reports)
    before, dtypes = hash_parameters(lmm.model), get_parameter_dtypes(lmm.model)
    start_stage(method, lmm, plan)
    settings = {**TRAINING, "learning_rate": 1e-2}
    train_stage(
        lmm,
        plan,
        method,
        samples(8),
        TrainStageConfig(training_config=settings, hardware_config=HARDWARE, seed=0, task="x"),
    )
    delta = end_stage(method, lmm, plan, dtypes)
    after = hash_parameters(lmm.model)
    assert {n for n in after if after[n] != before[n]} == set(plan.trainable) == set(delta)


def test_what_cannot_be_adapted_is_refused() -> None:
    lmm, method = tiny_lmm("llava_onevision"), LoRA(**SMALL)
    with pytest.raises(PlanError, match="LoRA adapts linear layers, and norm is none"):
        planned(lmm, method, [SelectionRule("language", ("q_proj", "norm"))])
    plan = replace(planned(lmm, method), recipe="mine")
    with pytest.raises(PlanError, match="mine: end_stage\\(\\) without start_stage"):
        end_stage(method, lmm, plan, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0: must be a whole number"),
        ({"alpha": 0}, "alpha=0: must be above 0"),
        ({"dropout": 1}, "dropout=1: must be from 0"),
        ({"compat": ["projectr"]}, "has no 'projectr'; there is: projector"),
        ({"ranks": 3}, "ranks"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(settings: dict[str, Any], message: str) -> None:
    node = load_recipe("lora")
    with pytest.raises(ConfigError, match=message) as error:
        build_method({**node, "method": {**node["method"], **settings}})
    assert "\n" not in str(error.value)


def test_the_recipe_has_the_settings_of_the_papers_code() -> None:
    method = build_method(load_recipe("lora"))
    assert isinstance(method, LoRA)
    assert (method.rank, method.alpha, method.dropout, method.compat) == (256, 32, 0.05, frozenset())
    assert parse_rules(load_recipe("lora")) == MLP


@pytest.mark.parametrize("recipe", ["lora", "wise_ft"])
def test_tune_refuses_what_it_cannot_do(recipe: str) -> None:
    lmm = tiny_lmm("llava_onevision")
    before = [p.requires_grad for p in lmm.model.parameters()]
    with pytest.raises(ConfigError, match=f"lmm_forget.run recipe={recipe}"):
        tune(lmm.model, recipe)
    assert [p.requires_grad for p in lmm.model.parameters()] == before
