"""WiSE-FT: the average in fp32, its end points to the bit, and nothing but the planned tensors touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.models.loading import LMM
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.recipes.method import build_method, get_parameter_dtypes
from lmm_forget.recipes.plain import Plain
from lmm_forget.recipes.selection import TunePlan, load_recipe
from lmm_forget.recipes.wise_ft import WiseFT
from lmm_forget.training.stage_config import TrainStageConfig
from lmm_forget.training.train_stage import train_stage
from tests.models.tiny import FAMILIES, tiny_lmm
from tests.recipes.stage_calls import end_stage, start_stage
from tests.training.lesson import HARDWARE, TRAINING, plan_for, samples


def stage(
    method: Plain, family: str = "llava_onevision", dtype: torch.dtype = torch.bfloat16
) -> tuple[LMM, TunePlan, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One stage with `method`: model, plan, delta, and the masters just before the end."""
    lmm = tiny_lmm(family, dtype=dtype)
    plan, dtypes = method.adapt_plan(lmm.model, plan_for(lmm, "wise_ft")), get_parameter_dtypes(lmm.model)
    start_stage(method, lmm, plan)
    settings = {**TRAINING, "learning_rate": 1e-2, "epochs": 2}
    result = train_stage(
        lmm,
        plan,
        method,
        samples(8),
        TrainStageConfig(training_config=settings, hardware_config=HARDWARE, seed=0, task="x"),
    )
    assert result.step_losses[-1] < result.step_losses[0]
    masters = {n: p.detach().clone() for n, p in lmm.model.named_parameters() if n in plan.trainable}
    return lmm, plan, end_stage(method, lmm, plan, dtypes), masters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_planned_tensors_move_and_the_delta_is_the_average(family: str, dtype: torch.dtype) -> None:
    base = tiny_lmm(family, dtype=dtype)
    before, previous = hash_parameters(base.model), dict(base.model.named_parameters())
    lmm, plan, delta, masters = stage(WiseFT(alpha=0.25), family, dtype)
    after = hash_parameters(lmm.model)
    assert {n for n in after if after[n] != before[n]} == set(plan.trainable) == set(delta)
    assert get_parameter_dtypes(lmm.model) == get_parameter_dtypes(base.model)
    assert not any(p.requires_grad for p in lmm.model.parameters())
    parameters = dict(lmm.model.named_parameters())
    for name, tensor in delta.items():
        exact = 0.25 * previous[name].double() + 0.75 * masters[name].double()
        assert torch.equal(tensor, parameters[name])
        if dtype == torch.float32:
            torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-7)
        else:
            assert (tensor != exact.float().bfloat16()).float().mean() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_end_points_are_exact(dtype: torch.dtype) -> None:
    base = hash_parameters(tiny_lmm("llava_onevision", dtype=dtype).model)
    assert hash_parameters(stage(WiseFT(alpha=1), dtype=dtype)[0].model) == base
    plain = hash_parameters(stage(Plain(), dtype=dtype)[0].model)
    assert hash_parameters(stage(WiseFT(alpha=0), dtype=dtype)[0].model) == plain
    assert hash_parameters(stage(WiseFT(alpha=1, compat=["rounded_sum"]), dtype=dtype)[0].model) == base


bits = st.lists(st.integers(0, 2**16 - 1), min_size=8, max_size=8)


@given(bits, bits, st.floats(0, 1))
def test_the_average_of_any_two_tensors(one: list[int], two: list[int], alpha: float) -> None:
    previous, tuned = (torch.tensor(x, dtype=torch.uint16).view(torch.bfloat16) for x in (one, two))
    finite = previous.isfinite() & tuned.isfinite()
    exactly = lambda t: t.view(torch.int16).tolist()  # noqa: E731  (bits: signs of zeros count)
    assert exactly(WiseFT(alpha=1)._average_tensors(previous, tuned.float(), torch.bfloat16)) == exactly(previous)
    kept = WiseFT(alpha=0)._average_tensors(previous, tuned.float(), torch.bfloat16)
    assert exactly(kept[finite]) == exactly(tuned[finite])
    still = WiseFT(alpha=alpha)._average_tensors(previous, previous.float(), torch.bfloat16)
    assert torch.equal(still[finite], previous[finite])  # what training left alone stays what it was


def test_a_sum_in_bf16_moves_weights_that_training_left_alone() -> None:
    weights = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    compat = WiseFT(alpha=0.1, compat="rounded_sum")._average_tensors(weights, weights.float(), torch.bfloat16)
    assert 0.02 < (compat != weights).float().mean() < 0.3
    assert torch.equal(WiseFT(alpha=0.1)._average_tensors(weights, weights.float(), torch.bfloat16), weights)


def test_the_next_stage_averages_with_the_stage_before_it() -> None:
    method = WiseFT(alpha=0.5)
    lmm = tiny_lmm("llava_onevision")
    plan, dtypes = plan_for(lmm, "wise_ft"), get_parameter_dtypes(lmm.model)
    name = plan.trainable[0]
    base = dict(lmm.model.named_parameters())[name].detach().clone()
    for expected in (2.0, 4.0):  # each stage adds 4 to the weights; half of it stays
        start_stage(method, lmm, plan)
        with torch.no_grad():
            dict(lmm.model.named_parameters())[name].add_(4.0)
        delta = end_stage(method, lmm, plan, dtypes)
        torch.testing.assert_close(delta[name] - base, torch.full_like(base, expected))


def test_the_plan_counts_what_is_kept_beside() -> None:
    lmm = tiny_lmm("llava_onevision", dtype=torch.bfloat16)
    rules = plan_for(lmm, "wise_ft")
    plan = WiseFT().adapt_plan(lmm.model, rules)
    assert plan.extra_state_bytes == rules.delta_bytes > 0
    assert plan.state_bytes == rules.state_bytes + rules.delta_bytes
    method = WiseFT()
    start_stage(method, lmm, plan)
    assert sum(t.nbytes for t in method._previous_tensors.values()) == plan.extra_state_bytes
    end_stage(method, lmm, plan, {n: torch.bfloat16 for n in dict(lmm.model.named_parameters())})
    assert not method._previous_tensors
    with pytest.raises(PlanError, match="without start_stage"):
        end_stage(method, lmm, plan, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": -0.1}, "from 0 to 1"),
        ({"compat": ["x"]}, "there is: rounded_sum"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(settings: dict[str, Any], message: str) -> None:
    node = load_recipe("wise_ft")
    with pytest.raises(ConfigError, match=message) as error:
        build_method({**node, "method": {**node["method"], **settings}})
    assert "\n" not in str(error.value)


def test_the_recipe_has_the_share_of_the_papers_script() -> None:
    method = build_method(load_recipe("wise_ft"))
    assert isinstance(method, WiseFT) and method.alpha == 0.1 and not method.compat
