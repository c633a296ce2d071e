"""The optimizer step: the mean over the global batch whatever the micro-batches, schedule, groups and clipping."""

from __future__ import annotations

import math

import pytest
import torch

from lmm_forget.errors import ConfigError, LmmForgetError
from lmm_forget.recipes.plain import Plain
from lmm_forget.training.optimization import (
    OptimizerConfig,
    compute_learning_rate_factor,
    find_tower_parameters,
    make_parameter_groups,
)
from tests.models.tiny import FAMILIES, tiny_lmm
from tests.recipes.stage_calls import start_stage
from tests.training.lesson import TRAINING, plan_for, samples, teach


class Remembering(Plain):
    """Plain tuning that keeps the gradients as they were when the optimizer step came."""

    def start_stage(self, context, lmm, train_set, state):
        super().start_stage(context, lmm, train_set, state)
        self.gradients = {}
        for name, p in lmm.model.named_parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(lambda p, name=name: self._keep(name, p))

    def _keep(self, name, p):
        self.gradients[name] = p.grad.clone()  # the last micro-batch leaves the sum


def gradients(monkeypatch, micro_batch, loss="sample_mean", family="llava_onevision"):
    """Gradient of one step over 16 samples (before clipping), and the step's loss."""
    method = Remembering()
    monkeypatch.setattr("tests.training.lesson.build_method", lambda recipe: method)
    _, _, result, _ = teach(
        "llm",
        family=family,
        items=samples(16),
        training={"global_batch_size": 16, "loss": loss},
        hardware={"precision": "fp32", "micro_batch_size": micro_batch},
    )
    return method.gradients, result.step_losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_give_the_same_gradients(monkeypatch, family):
    whole, loss = gradients(monkeypatch, 16, family=family)
    for micro_batch in (1, 4):
        parts, again = gradients(monkeypatch, micro_batch, family=family)
        assert again == pytest.approx(loss, rel=1e-5)
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_loss_is_the_mean_of_sample_means_or_of_tokens(monkeypatch):
    """Against the per-token losses of the untouched model; the answers have one to four letters."""
    lmm = tiny_lmm("llava_onevision")
    items = samples(16)
    e = lmm.family.encode_batch(
        lmm.processor, [i.question for i in items], [list(i.images) for i in items], [i.answer for i in items]
    )
    with torch.no_grad():
        means = Plain().loss(lmm, e.tensors, e.labels)
    tokens = torch.tensor([len(i.answer) + 1 for i in items])
    by_tokens = float((means * tokens).sum() / tokens.sum())
    assert gradients(monkeypatch, 4)[1] == pytest.approx(float(means.mean()), rel=1e-5)
    assert gradients(monkeypatch, 4, loss="token_mean")[1] == pytest.approx(by_tokens, rel=1e-5)
    assert abs(by_tokens - float(means.mean())) > 1e-4


def test_token_mean_does_not_depend_on_micro_batches():
    def weights(micro_batch):
        lmm, plan, result, delta = teach(
            "sa_proj",
            items=samples(16),
            training={"global_batch_size": 16, "loss": "token_mean", "max_grad_norm": None, "max_steps": 2},
            hardware={"precision": "fp32", "micro_batch_size": micro_batch},
        )
        return result.step_losses, delta

    (loss, whole), (again, parts) = weights(16), weights(2)
    assert again == pytest.approx(loss, rel=1e-5)
    assert all(torch.allclose(whole[n], parts[n], atol=1e-4) for n in whole)


def test_warm_up_then_cosine():
    factors = [compute_learning_rate_factor(k, num_steps=100, warmup_ratio=0.03) for k in range(101)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors == factors[:4] + sorted(factors[4:], reverse=True)
    assert factors[3 + 97 // 2] == pytest.approx(0.5, abs=0.01)
    assert 0 < factors[99] < 1e-3
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert [compute_learning_rate_factor(k, num_steps=2, warmup_ratio=0.0) for k in range(2)] == [
        1.0,
        pytest.approx(0.5),
    ]
    assert compute_learning_rate_factor(0, num_steps=1, warmup_ratio=0.03) == 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_tower_gets_the_vision_learning_rate(family):
    lmm = tiny_lmm(family)
    plan = plan_for(lmm, "full")
    start_stage(Plain(), lmm, plan)
    opt = OptimizerConfig.from_config({**TRAINING, "learning_rate": 3e-4, "vision_learning_rate": 1e-4}, num_steps=1)
    moving = [(n, p) for n, p in lmm.model.named_parameters() if p.requires_grad]
    tower = find_tower_parameters(lmm.model, lmm.components)
    groups = {g["name"]: g for g in make_parameter_groups(moving, tower, opt)}
    names = {id(p): n for n, p in lmm.model.named_parameters()}
    in_group = {name: {names[id(p)] for p in g["params"]} for name, g in groups.items()}
    assert in_group["vision"] == set(plan.get_trainable_names("vision"))
    assert in_group["main"] == set(plan.trainable) - set(plan.get_trainable_names("vision"))
    assert (groups["main"]["lr"], groups["vision"]["lr"]) == (3e-4, 1e-4)
    alone = make_parameter_groups(moving, tower, OptimizerConfig.from_config(TRAINING, num_steps=1))
    assert [(g["name"], len(g["params"])) for g in alone] == [("main", len(plan.trainable))]


def test_first_adamw_step_moves_by_the_learning_rate_and_decays():
    """AdamW's first step is lr * sign(gradient) when the gradient is far above eps; no warm-up, one step."""
    lmm, plan, _, delta = teach(
        "projector", training={"max_steps": 1, "warmup_ratio": 0.0, "max_grad_norm": None, "weight_decay": 0.1}
    )
    base = dict(tiny_lmm("llava_onevision").model.named_parameters())
    for name in plan.trainable:
        moved = delta[name] - base[name].detach() * (1 - 1e-3 * 0.1)
        assert moved.abs().median().item() == pytest.approx(1e-3, rel=1e-2), name


def test_clipping_bounds_the_step_but_not_the_logged_norm():
    seen = []

    class Listener:
        def log_step(self, task, step, figures):
            seen.append(figures["grad_norm"])

    def steps(clip):
        delta = teach("llm", training={"max_steps": 1, "max_grad_norm": clip}, tracker=Listener())[3]
        base = dict(tiny_lmm("llava_onevision").model.named_parameters())
        return float((delta["lm_head.weight"] - base["lm_head.weight"].detach()).abs().mean())

    # A gradient scaled down to AdamW's eps takes clearly smaller steps than an unclipped one.
    assert steps(1e-8) < 0.1 * steps(None)
    assert seen[0] > 0.1
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_stage(monkeypatch):
    class Broken(Plain):
        def loss(self, lmm, batch, labels):
            return super().loss(lmm, batch, labels) * math.nan

    monkeypatch.setattr("tests.training.lesson.build_method", lambda recipe: Broken())
    with pytest.raises(LmmForgetError, match=r"^the loss is nan in step 1 of 3: .* \(now 0.001\)$"):
        teach("sa_proj")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "sum"}, "training.loss=sum: unknown; use one of sample_mean, token_mean"),
        ({"learning_rate": 0.0}, "training.learning_rate=0.0: must be above 0"),
        ({"vision_learning_rate": -1}, "training.vision_learning_rate=-1: must be above 0"),
        ({"warmup_ratio": 3}, "training.warmup_ratio=3.0: is a share"),
    ],
)
def test_unusable_hyper_parameters_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig.from_config({**TRAINING, **change}, num_steps=1)
