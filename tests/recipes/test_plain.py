"""Plain tuning: the loss by hand, which tensors move, and what a stage hands on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lmm_forget.errors import PlanError
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.recipes import plain
from lmm_forget.recipes.method import convert_to_masters, get_parameter_dtypes, restore_base_dtypes
from lmm_forget.recipes.plain import Plain, average_per_sample, compute_token_losses
from tests.models.tiny import FAMILIES, picture, tiny_lmm
from tests.recipes.stage_calls import end_stage, start_stage
from tests.training.lesson import plan_for


def encoded(lmm):
    return lmm.family.encode_batch(
        lmm.processor,
        ["Which letter?", "And this one?"],
        [[picture()], [picture(80, 56, seed=1)]],
        ["a", "wxyz"],
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_equals_cross_entropy_over_all_logits(family, monkeypatch):
    lmm = tiny_lmm(family)
    e = encoded(lmm)
    with torch.no_grad():
        loss = Plain().loss(lmm, e.tensors, e.labels)
        logits = lmm.model(**e.tensors).logits
        monkeypatch.setattr(plain, "has_plain_output_head", lambda model: False)
        generic = Plain().loss(lmm, e.tensors, e.labels)
    by_hand = []
    for row, labels in zip(logits, e.labels, strict=True):
        where = [t for t in range(1, len(labels)) if labels[t] != -100]
        terms = [-F.log_softmax(row[t - 1].double(), dim=0)[labels[t]] for t in where]
        by_hand.append(sum(terms) / len(terms))
    assert [int((row != -100).sum()) for row in e.labels] == [2, 5]  # the letters and the end token
    torch.testing.assert_close(loss.double(), torch.stack(by_hand), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(generic, loss, rtol=1e-5, atol=1e-6)


def test_only_labelled_rows_reach_the_output_head():
    lmm = tiny_lmm("llava_onevision")
    e = encoded(lmm)
    rows = []
    handle = lmm.model.lm_head.register_forward_hook(lambda m, inputs, output: rows.append(tuple(inputs[0].shape)))
    Plain().loss(lmm, e.tensors, e.labels)
    handle.remove()
    assert rows == [(7, 32)]


def test_models_that_scale_their_logits_use_their_own_forward():
    lmm = tiny_lmm("llava_onevision")
    assert plain.has_plain_output_head(lmm.model)
    lmm.model.config.get_text_config().final_logit_softcapping = 30.0
    assert not plain.has_plain_output_head(lmm.model)


def test_loss_is_fp32_under_autocast():
    lmm = tiny_lmm("llava_onevision", dtype=torch.bfloat16)
    e = encoded(lmm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = compute_token_losses(lmm.model, e.tensors, e.labels)
    assert losses.dtype == torch.float32


def test_sample_means_ignore_padding_and_empty_samples():
    labels = torch.tensor([[-100, 5, 6, -100], [-100, -100, -100, -100]])
    losses = torch.tensor([[2.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    assert average_per_sample(losses, labels).tolist() == [3.0, 0.0]


@pytest.mark.parametrize("recipe", ["full", "llm", "projector", "sa_proj", "mlp_gateup"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_planned_tensor_gets_a_gradient_and_no_other(family, recipe):
    lmm = tiny_lmm(family)
    plan = plan_for(lmm, recipe)
    start_stage(Plain(), lmm, plan)
    e = encoded(lmm)
    Plain().loss(lmm, e.tensors, e.labels).sum().backward()
    with_gradient = {name for name, p in lmm.model.named_parameters() if p.grad is not None}
    assert with_gradient == set(plan.trainable)


def test_prepare_makes_masters_of_planned_tensors_only():
    lmm = tiny_lmm("llava_onevision", dtype=torch.bfloat16)
    before = hash_parameters(lmm.model)
    plan = plan_for(lmm, "sa_proj")
    start_stage(Plain(), lmm, plan)
    for name, p in lmm.model.named_parameters():
        assert p.requires_grad == (name in plan.trainable)
        assert p.dtype == (torch.float32 if name in plan.trainable else torch.bfloat16)
    after = hash_parameters(lmm.model)
    assert all(after[name] == before[name] for name in (*plan.frozen, *plan.unused))


def test_tied_weights_stay_tied():
    lmm = tiny_lmm("llava_onevision", dtype=torch.bfloat16, tie_word_embeddings=True)
    plan, dtypes = plan_for(lmm, "llm"), get_parameter_dtypes(lmm.model)
    start_stage(Plain(), lmm, plan)
    assert lmm.model.lm_head.weight is lmm.model.get_input_embeddings().weight
    with torch.no_grad():
        lmm.model.lm_head.weight.add_(1.0)
    delta = end_stage(Plain(), lmm, plan, dtypes)
    assert "lm_head.weight" not in delta
    name = next(n for n in delta if n.endswith("embed_tokens.weight"))
    assert torch.equal(delta[name], lmm.model.lm_head.weight)


def test_finish_rounds_to_the_base_dtype_and_shares_no_memory():
    lmm = tiny_lmm("llava_onevision", dtype=torch.bfloat16)
    before = hash_parameters(lmm.model)
    plan, dtypes = plan_for(lmm, "mlp_down"), get_parameter_dtypes(lmm.model)
    start_stage(Plain(), lmm, plan)
    parameters = dict(lmm.model.named_parameters())
    name = plan.trainable[0]
    with torch.no_grad():
        parameters[name].fill_(1.0 + 2.0**-9 + 2.0**-12)  # above the midpoint of 1 and the next bf16
    delta = end_stage(Plain(), lmm, plan, dtypes)
    assert set(delta) == set(plan.trainable)
    assert {t.dtype for t in delta.values()} == {torch.bfloat16}
    assert {p.dtype for p in lmm.model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in lmm.model.parameters())
    assert delta[name].unique().tolist() == [1.0]
    delta[name].zero_()
    assert parameters[name].unique().tolist() == [1.0]
    after = hash_parameters(lmm.model)
    assert {n for n in after if after[n] != before[n]} == {name}


def test_a_plan_of_another_model_is_refused():
    lmm = tiny_lmm("llava_onevision")
    with pytest.raises(PlanError, match="1 tensors that LlavaOnevisionForConditionalGeneration does not have: nowhere"):
        convert_to_masters(lmm.model, ["nowhere"])


def test_to_base_drops_gradients():
    lmm = tiny_lmm("llava_onevision")
    dtypes = get_parameter_dtypes(lmm.model)
    lmm.model.lm_head.weight.grad = torch.ones_like(lmm.model.lm_head.weight)
    restore_base_dtypes(lmm.model, dtypes)
    assert lmm.model.lm_head.weight.grad is None
