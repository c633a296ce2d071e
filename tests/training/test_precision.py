"""Number formats: every recipe starts from the base's logits, frozen tensors keep their bits, pure bf16 is refused."""

from __future__ import annotations

import functools

import pytest
import torch

from lmm_forget.errors import ConfigError
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.recipes.method import get_parameter_dtypes
from lmm_forget.recipes.plain import Plain
from lmm_forget.training.precision import PrecisionContext, refuse_pure_bf16
from tests.models.subjects import SUBJECTS, subject
from tests.models.tiny import FAMILIES, picture, tiny_lmm
from tests.recipes.stage_calls import end_stage, start_stage
from tests.training.lesson import TRAINING, plan_for, teach

RECIPES = ("full", "llm", "vision", "projector", "sa_proj", "mlp_gateup")


def batch_of(lmm):
    return lmm.family.encode_batch(
        lmm.processor, ["One?", "And two?"], [[picture(seed=1)], [picture(80, 56, seed=2)]], ["a", "wxyz"]
    ).tensors


@functools.cache
def base_logits(family, dtype):
    """Logits of the base in training precision: no method has touched it."""
    lmm = tiny_lmm(family, dtype=dtype)
    with (
        torch.no_grad(),
        PrecisionContext(lmm.model, "bf16", "cpu", {}) as compute,
        compute.make_autocast_context(),
    ):
        return lmm.model(**batch_of(lmm)).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bf16_base_in_training_precision_is_the_base_under_autocast(family):
    lmm = tiny_lmm(family, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lmm.model(**batch_of(lmm)).logits, base_logits(family, torch.bfloat16))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda d: str(d)[6:])  # bf16: tests/contract
@pytest.mark.parametrize("family", FAMILIES)
def test_every_recipe_starts_from_the_base_logits_bit_for_bit(family, dtype, recipe):
    lmm = tiny_lmm(family, dtype=dtype)
    start_stage(Plain(), lmm, plan_for(lmm, recipe))
    with (
        torch.no_grad(),
        PrecisionContext(lmm.model, "bf16", "cpu", {}) as compute,
        compute.make_autocast_context(),
    ):
        assert torch.equal(lmm.model(**batch_of(lmm)).logits, base_logits(family, dtype))


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_half_precision_base_computes_what_it_would_if_all_of_it_were_widened(name):
    """So that nothing has to be widened that autocast casts anyway."""
    lmm, wide = subject(name, torch.float16), subject(name, torch.float16)
    wide.model.float()
    found = []
    for one in (lmm, wide):
        with (
            torch.no_grad(),
            PrecisionContext(one.model, "bf16", "cpu", {}) as compute,
            compute.make_autocast_context(),
        ):
            found.append(one.model(**batch_of(one)).logits)
            kept = sum(p.numel() for p in one.model.parameters() if p.dtype == torch.float16)
            whole = sum(p.numel() for p in one.model.parameters())
        assert (kept > 0.4 * whole) == (one is lmm)
    assert torch.equal(*found)


def test_without_the_cast_the_llm_recipe_would_start_elsewhere():
    lmm = tiny_lmm("qwen2_5_vl", dtype=torch.bfloat16)
    start_stage(Plain(), lmm, plan_for(lmm, "llm"))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(lmm.model(**batch_of(lmm)).logits, base_logits("qwen2_5_vl", torch.bfloat16))


@pytest.mark.parametrize("precision", ["bf16", "fp32", "bf16-true"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_leaving_the_precision_restores_every_tensor_and_hook(dtype, precision):
    lmm = tiny_lmm("llava_next", dtype=dtype)
    before = hash_parameters(lmm.model)
    hooks = sum(len(m._forward_hooks) for m in lmm.model.modules())
    with PrecisionContext(lmm.model, precision, "cpu", {}):
        pass
    if dtype == torch.float16 and precision == "bf16-true":
        assert hash_parameters(lmm.model) != before  # why fit refuses this pair: bits are lost on the way
    else:
        assert hash_parameters(lmm.model) == before
    assert sum(len(m._forward_hooks) for m in lmm.model.modules()) == hooks


def test_fp32_compute_widens_frozen_weights_for_the_stage():
    lmm = tiny_lmm("llava_onevision", dtype=torch.bfloat16)
    start_stage(Plain(), lmm, plan_for(lmm, "sa_proj"))
    with (
        torch.no_grad(),
        PrecisionContext(lmm.model, "fp32", "cpu", {}) as compute,
        compute.make_autocast_context(),
    ):
        assert {p.dtype for p in lmm.model.parameters()} == {torch.float32}
        logits = lmm.model(**batch_of(lmm)).logits
    exact = tiny_lmm("llava_onevision", dtype=torch.bfloat16)
    exact.model.float()
    with torch.no_grad():
        assert torch.equal(logits, exact.model(**batch_of(exact)).logits)


@pytest.mark.parametrize("precision", ["bf16", "fp32", "bf16-true"])
@pytest.mark.parametrize("recipe", ["llm", "sa_proj", "mlp_gateup"])
def test_after_a_stage_frozen_tensors_are_bit_identical_and_all_dtypes_are_the_base_s(recipe, precision):
    base = tiny_lmm("llava_onevision", dtype=torch.bfloat16)
    before, dtypes = hash_parameters(base.model), get_parameter_dtypes(base.model)
    lmm, plan, _, delta = teach(
        recipe, dtype=torch.bfloat16, training={"learning_rate": 1e-2}, hardware={"precision": precision}
    )
    after = hash_parameters(lmm.model)
    assert get_parameter_dtypes(lmm.model) == dtypes
    assert all(after[name] == before[name] for name in (*plan.frozen, *plan.unused))
    moved = {name for name in after if after[name] != before[name]}
    assert moved == set(plan.trainable)
    assert {t.dtype for t in delta.values()} == {torch.bfloat16}


def test_small_steps_accumulate_in_the_masters_of_a_bf16_base():
    """Steps below bf16's resolution move fp32 masters; pure bf16 would round each of them away."""
    lmm = tiny_lmm("llava_onevision", dtype=torch.bfloat16)
    plan, method = plan_for(lmm, "mlp_down"), Plain()
    start_stage(method, lmm, plan)
    name = plan.trainable[0]
    master = dict(lmm.model.named_parameters())[name]
    pure = torch.ones(4, dtype=torch.bfloat16)
    with torch.no_grad():
        master.fill_(1.0)
        for _ in range(1000):
            master.add_(1e-5)
            pure.add_(1e-5)
    assert pure.tolist() == [1.0] * 4
    delta = end_stage(method, lmm, plan, {n: torch.bfloat16 for n in get_parameter_dtypes(lmm.model)})
    assert delta[name].float().unique().item() == pytest.approx(1.01, abs=2**-8)


def test_pure_bf16_with_small_steps_is_refused_in_one_line():
    hardware = {"precision": "bf16-true"}
    with pytest.raises(ConfigError, match=r"^hardware.precision=bf16-true with learning rate 5e-06: [^\n]*resolution"):
        refuse_pure_bf16({"learning_rate": 5e-6}, hardware)
    with pytest.raises(ConfigError, match="learning rate 2e-06"):
        refuse_pure_bf16({"learning_rate": 1e-3, "vision_learning_rate": 2e-6}, hardware)
    refuse_pure_bf16({"learning_rate": 1e-3}, hardware)
    refuse_pure_bf16({"learning_rate": 5e-6}, {"precision": "bf16"})


def test_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match="hardware.precision=fp8: unknown; use one of bf16, fp32, bf16-true"):
        refuse_pure_bf16(TRAINING, {"precision": "fp8"})


def test_pure_bf16_of_another_checkpoint_is_refused():
    with pytest.raises(ConfigError, match="holds float32 tensors"):
        teach("sa_proj", dtype=torch.float32, hardware={"precision": "bf16-true"})
