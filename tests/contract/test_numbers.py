"""What may not change a number, on every model: batching, padding, recomputed activations; and what autocast may."""

from __future__ import annotations

import pytest
import torch

from lmm_forget.training.precision import PrecisionContext
from tests.contract.test_recipes import LESSON
from tests.evaluation.flips import flips
from tests.evaluation.questions import Questions, evaluate_task
from tests.models.subjects import SUBJECTS, subject
from tests.models.tiny import FAMILIES
from tests.training.lesson import hashes_after

AUTOCAST = 2e-2
"""Largest difference of logits under bf16 autocast from fp32, as a share of the largest fp32 logit."""


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_row_of_a_batch_is_worth_the_sample_alone(name: str) -> None:
    lmm = subject(name)
    questions, pictures, answers = zip(*((i.question, list(i.images), i.answer) for i in LESSON), strict=True)
    together = lmm.family.encode_batch(lmm.processor, questions, pictures, answers)
    with torch.inference_mode():
        rows = lmm.model(**together.tensors).logits
        for i, question in enumerate(questions):
            alone = lmm.family.encode_batch(lmm.processor, [question], [pictures[i]], [answers[i]])
            assert alone.lengths == [together.lengths[i]]
            single = lmm.model(**alone.tensors).logits[0]
            torch.testing.assert_close(rows[i, : alone.lengths[0]], single, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SUBJECTS)
def test_batch_1_equals_batch_32(name: str) -> None:
    lmm, task = subject(name), Questions(32)
    one = evaluate_task(lmm, task, task.made, batch_size=1)
    many = evaluate_task(lmm, task, task.made, batch_size=32)
    found = flips(one, many)
    assert found.total == 32 and found.unexplained == ()
    assert found.near_ties <= 2
    assert len({answer.text for answer in one}) > 1  # the pictures and questions matter


@pytest.mark.parametrize("recipe", ["full", "mlp_gateup"])
@pytest.mark.parametrize("name", FAMILIES)
def test_recomputed_activations_change_no_byte(name: str, recipe: str) -> None:
    settings = {"family": name, "recipe": recipe, "items": list(LESSON), "training": {"max_steps": 2}}
    kept = hashes_after(**settings)
    assert hashes_after(**settings, hardware={"activation_checkpointing": True}) == kept


@pytest.mark.parametrize("name", SUBJECTS)
def test_autocast_stays_near_fp32(name: str) -> None:
    lmm = subject(name)
    questions, pictures = zip(*((i.question, list(i.images)) for i in LESSON), strict=True)
    batch = lmm.family.encode_batch(lmm.processor, questions, pictures).tensors
    found = {}
    for precision in ("fp32", "bf16"):
        with (
            torch.no_grad(),
            PrecisionContext(lmm.model, precision, "cpu", {}) as compute,
            compute.make_autocast_context(),
        ):
            found[precision] = lmm.model(**batch).logits[:, -1].float()
    difference = (found["bf16"] - found["fp32"]).abs().max() / found["fp32"].abs().max()
    assert 0 < difference < AUTOCAST
