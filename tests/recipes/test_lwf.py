"""LwF: the teacher is the stage's beginning, it disturbs nothing, and what it holds the student to is held."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.recipes import plain
from lmm_forget.recipes.lwf import LwF, compute_distillation_losses, select_spread_positions
from lmm_forget.recipes.method import Method, build_method, get_parameter_dtypes
from lmm_forget.recipes.plain import Plain, compute_logits_at, make_target_mask
from lmm_forget.recipes.selection import load_recipe
from lmm_forget.training.precision import PrecisionContext
from lmm_forget.training.stage_config import TrainStageConfig
from lmm_forget.training.train_stage import train_stage
from tests.models.tiny import FAMILIES, tiny_lmm
from tests.recipes.stage_calls import end_stage, start_stage
from tests.training.lesson import HARDWARE, TRAINING, plan_for, samples

LONG = {**TRAINING, "learning_rate": 1e-2, "epochs": 3}


def lesson(
    method: Method,
    family: str = "llava_onevision",
    dtype: torch.dtype = torch.bfloat16,
    training: dict[str, Any] | None = None,
    **hardware: Any,
) -> tuple[Any, list[float]]:
    """A stage with `method`, up to its end: the model and its losses."""
    lmm = tiny_lmm(family, dtype=dtype)
    plan, dtypes = method.adapt_plan(lmm.model, plan_for(lmm, "lwf")), get_parameter_dtypes(lmm.model)
    start_stage(method, lmm, plan)
    settings, machine = {**LONG, **(training or {})}, {**HARDWARE, **hardware}
    result = train_stage(
        lmm,
        plan,
        method,
        samples(8),
        TrainStageConfig(training_config=settings, hardware_config=machine, seed=0, task="x"),
    )
    end_stage(method, lmm, plan, dtypes)
    return lmm, result.step_losses


def encoded(lmm: Any) -> Any:
    items = samples(4)
    return lmm.family.encode_batch(
        lmm.processor, [i.question for i in items], [list(i.images) for i in items], [i.answer for i in items]
    )


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        *((dtype, form) for dtype in (torch.float32, torch.bfloat16, torch.float16) for form in ("bf16", "fp32")),
        (torch.bfloat16, "bf16-true"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_before_the_first_step_the_student_says_what_the_teacher_says(
    family: str, dtype: torch.dtype, precision: str
) -> None:
    """To the bit, whatever the number formats: the second loss begins at 0, and so does its gradient."""
    lmm, method = tiny_lmm(family, dtype=dtype), LwF(weight=3.0)
    checkpoint = get_parameter_dtypes(lmm.model)
    start_stage(method, lmm, plan_for(lmm, "lwf"))
    given_, gradients = encoded(lmm), []
    for one in (method, Plain()):
        with PrecisionContext(lmm.model, precision, "cpu", checkpoint) as compute:
            with compute.make_autocast_context():
                loss = one.loss(lmm, dict(given_.tensors), given_.labels)
            loss.sum().backward()
            moved = [p.grad for p in lmm.model.parameters() if p.requires_grad]
        gradients.append((loss.detach(), moved))
        lmm.model.zero_grad(set_to_none=True)
    (loss, ours), (plain_loss, theirs) = gradients
    assert torch.equal(loss, plain_loss)
    tolerance = 1e-4 if precision == "fp32" else 2e-2  # rows of zeros take part in sums that are rounded to bf16
    for a, b in zip(ours, theirs, strict=True):
        assert a is not None and b is not None
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_of_nothing_is_plain_tuning_to_the_bit(dtype: torch.dtype) -> None:
    """0 asks no teacher; 1e-37 asks one in every step, with dropout, and leaves no trace of having done so."""
    training = {"attention_dropout": 0.3}
    wanted, losses = lesson(Plain(), dtype=dtype, training=training)
    for weight in (0.0, 1e-37):
        lmm, found = lesson(LwF(weight=weight), dtype=dtype, training=training)
        assert found == losses and hash_parameters(lmm.model) == hash_parameters(wanted.model)


def test_a_large_weight_holds_the_answers_to_what_they_were() -> None:
    base = tiny_lmm("llava_onevision", dtype=torch.float32)
    ask = encoded(base)
    where = make_target_mask(ask.labels)
    with torch.no_grad():
        before = compute_logits_at(base.model, ask.tensors, where)
    drift = []
    for weight in (0.0, 1.0, 30.0):
        training = {"max_steps": 60, "learning_rate": 1e-2}
        lmm, losses = lesson(
            LwF(weight=weight, positions="answer"), dtype=torch.float32, precision="fp32", training=training
        )
        assert losses[-1] < losses[0]
        with torch.no_grad():
            after = compute_logits_at(lmm.model, ask.tensors, where)
        drift.append(compute_distillation_losses(before, after, 1.0).mean().item())
    assert drift[0] > drift[1] > 1.5 * drift[2] > 0


def test_the_teacher_is_the_model_before_the_stage_in_every_stage() -> None:
    method = LwF()
    lmm = tiny_lmm("llava_onevision")
    plan, dtypes, ask = plan_for(lmm, "lwf"), get_parameter_dtypes(lmm.model), encoded(lmm)
    where = make_target_mask(ask.labels)
    for _ in range(2):
        with torch.no_grad():
            before = compute_logits_at(lmm.model, ask.tensors, where)
            start_stage(method, lmm, plan)
            for name in plan.trainable:
                lmm.model.get_parameter(name).add_(0.5)
        lmm.model.train()
        masters = {name: lmm.model.get_parameter(name).detach().clone() for name in plan.trainable}
        assert torch.equal(method._compute_teacher_logits(ask.tensors, where), before)
        assert all(torch.equal(lmm.model.get_parameter(n), master) for n, master in masters.items())
        assert all(module.training for module in lmm.model.modules())
        lmm.model.eval()
        end_stage(method, lmm, plan, dtypes)
        assert not list(method.get_extra_state())


def test_the_masters_come_back_where_the_teacher_runs_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    lmm, method = tiny_lmm("llava_onevision"), LwF()
    plan, ask = plan_for(lmm, "lwf"), encoded(lmm)
    start_stage(method, lmm, plan)
    lmm.model.train()
    masters = [lmm.model.get_parameter(name).data for name in plan.trainable]

    def fails(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(type(lmm.model.model), "forward", fails)
    with pytest.raises(torch.OutOfMemoryError):
        method.loss(lmm, ask.tensors, ask.labels)
    now = [lmm.model.get_parameter(name) for name in plan.trainable]
    assert all(p.data_ptr() == m.data_ptr() and p.requires_grad for p, m in zip(now, masters, strict=True))
    assert all(module.training for module in lmm.model.modules())


def test_the_second_loss_by_hand() -> None:
    """Two tokens of which the teacher gives the first 3/4: T^2 * sum p (log p - log q)."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert compute_distillation_losses(teacher, student, 1.0).item() == pytest.approx(expected, rel=1e-6)
    root = math.sqrt(3.0) / (1 + math.sqrt(3.0))
    softened = root * math.log(root / 0.5) + (1 - root) * math.log((1 - root) / 0.5)
    assert compute_distillation_losses(teacher, student, 2.0).item() == pytest.approx(4 * softened, rel=1e-6)
    assert compute_distillation_losses(teacher, teacher, 2.0).item() == 0


@pytest.mark.parametrize("positions", ["answer", "sequence"])
def test_a_sample_is_worth_the_same_in_any_batch(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding, other samples and the way rows of logits are chosen change no sample's loss."""
    lmm, method = tiny_lmm("llava_onevision", dtype=torch.float32), LwF(positions=positions)
    plan, items = plan_for(lmm, "lwf"), samples(4)
    start_stage(method, lmm, plan)
    with torch.no_grad():
        for name in plan.trainable:
            lmm.model.get_parameter(name).mul_(30)
    ask = encoded(lmm)
    whole = method.loss(lmm, ask.tensors, ask.labels).tolist()
    for i, item in enumerate(items):
        one = lmm.family.encode_batch(lmm.processor, [item.question], [list(item.images)], [item.answer])
        assert method.loss(lmm, one.tensors, one.labels).tolist() == pytest.approx([whole[i]], rel=1e-4)
    monkeypatch.setattr(plain, "has_plain_output_head", lambda _: False)
    assert method.loss(lmm, ask.tensors, ask.labels).tolist() == pytest.approx(whole, rel=1e-5)
    with torch.no_grad():  # both losses are there, each with its own weight
        alone = Plain().loss(lmm, ask.tensors, ask.labels)
        twice = LwF(weight=2.0, positions=positions)
        twice._teacher_tensors, twice._teacher_model = method._teacher_tensors, method._teacher_model
        second = (twice.loss(lmm, ask.tensors, ask.labels) - alone).tolist()
    assert [w - a for w, a in zip(whole, alone.tolist(), strict=True)] == pytest.approx(
        [s / 2 for s in second], rel=1e-3
    )
    assert min(second) > 0


@pytest.mark.parametrize(
    ("length", "chosen"),
    [
        (4, [0]),
        (10, [0, 5]),
        (20, [0, 1, 10, 19]),
        (50, [0, 1, 2, 3, 4, 25, 46, 47, 48, 49]),
    ],
)
def test_positions_as_the_papers_code_takes_them(length: int, chosen: list[int]) -> None:
    found = select_spread_positions(torch.ones(1, length, dtype=torch.long))
    assert found[0].nonzero().flatten().tolist() == chosen


@given(st.integers(1, 7000), st.integers(0, 40), st.booleans())
def test_positions_of_any_length_under_padding(length: int, padding: int, left: bool) -> None:
    real, empty = [1] * length, [0] * padding
    mask = torch.tensor([empty + real if left else real + empty])
    where = select_spread_positions(mask)
    assert where.sum() == max(1, min(length // 5, 1000)) and not (where & ~mask.bool()).any()
    alone = select_spread_positions(torch.ones(1, length, dtype=torch.long))
    assert torch.equal(where[mask.bool()], alone[0])  # padding moves nothing


def test_the_plan_counts_what_is_kept_beside() -> None:
    lmm = tiny_lmm("llava_onevision", dtype=torch.bfloat16)
    rules, method = plan_for(lmm, "lwf"), LwF()
    plan = method.adapt_plan(lmm.model, rules)
    assert plan.extra_state_bytes == rules.delta_bytes > 0
    start_stage(method, lmm, plan)
    assert sum(t.nbytes for t in method.get_extra_state()) == plan.extra_state_bytes


def test_a_loss_without_a_teacher_is_refused() -> None:
    lmm = tiny_lmm("llava_onevision")
    with pytest.raises(PlanError, match="without start_stage"):
        LwF().loss(lmm, {}, torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1}, "weight=-1: must be 0 or above"),
        ({"weight": float("inf")}, "weight=inf"),
        ({"temperature": 0}, "temperature=0: must be above 0"),
        ({"positions": "x"}, "positions=x is not known; choose one of: sequence, answer"),
        ({"weight": "much"}, "weight=much: must be 0 or above"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(settings: dict[str, Any], message: str) -> None:
    node = load_recipe("lwf")
    with pytest.raises(ConfigError, match=message) as error:
        build_method({**node, "method": {**node["method"], **settings}})
    assert "\n" not in str(error.value)


def test_the_recipe_has_the_settings_of_the_papers_script() -> None:
    method = build_method(load_recipe("lwf"))
    assert isinstance(method, LwF) and method.positions == "sequence"
    assert (method.weight, method.temperature) == (1.0, 2.0)


def test_rows_of_logits_are_those_of_the_whole() -> None:
    lmm = tiny_lmm("qwen2_5_vl", dtype=torch.float32)
    ask = encoded(lmm)
    where = make_target_mask(ask.labels)
    with torch.no_grad():
        whole = lmm.model(**ask.tensors).logits
        assert torch.equal(compute_logits_at(lmm.model, ask.tensors, where), whole[where])
    assert F.pad(where[:, :-1], (1, 0)).sum() == (ask.labels[:, 1:] != -100).sum()
