"""How many pictures a sample has changes nothing but the sample: none, one, two or three, alone and in one batch."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from lmm_forget.evaluation.engines.hf import generate_answers
from lmm_forget.models.loading import LMM
from tests.contract.test_positions import Positions
from tests.models.subjects import PACKAGED, SUBJECTS, subject
from tests.models.tiny import picture

SIDE_BY_SIDE = [picture(64, 64, 1), picture(64, 64, 2)]
MIXED: tuple[list[Image.Image], ...] = (
    SIDE_BY_SIDE,
    [],
    [picture(84, 56, 3)],
    [picture(56, 100, 4), picture(64, 64, 5), picture(1, 40, 6)],
    SIDE_BY_SIDE[::-1],
)
QUESTIONS = ("Which?", "No picture at all?", "And this one?", "Which of the three is it?", "Which?")
ANSWERS = ("w", "wx", "w", "wxy", "w")
NEAR_TIE = 1e-3
"""Margins of logits below which a batch may answer otherwise than a sample alone, as in an evaluation."""

# One picture of 64 x 64 in the packaged models: 4 x 4 cells; LLaVA has a base view, a tile and a newline per row.
# Several: OneVision takes their base views with a newline each, NeXT and Qwen treat each as if it were alone.
IMAGE_TOKENS = {"tiny_onevision": (36, 17), "tiny_next": (36, 36), "tiny_qwen2_5_vl": (16, 16)}


def slots(lmm: LMM, ids: torch.Tensor) -> list[int]:
    """Image tokens of each row of `ids` [B, L]."""
    return [int(n) for n in (ids == lmm.processor.image_token_id).sum(dim=1)]


@pytest.mark.parametrize("name", PACKAGED)
def test_every_picture_has_its_tokens(name: str) -> None:
    lmm, (alone, among) = subject(name), IMAGE_TOKENS[name]
    pictures = [[], SIDE_BY_SIDE[:1], SIDE_BY_SIDE, [*SIDE_BY_SIDE, picture(64, 64, 3)]]
    for answers in (None, ["w"] * 4):
        ids = lmm.family.encode_batch(lmm.processor, ["?"] * 4, pictures, answers).tensors["input_ids"]
        assert slots(lmm, ids) == [0, alone, 2 * among, 3 * among]


@pytest.mark.parametrize("name", SUBJECTS)
def test_losses_of_a_mixed_batch_are_those_of_its_samples(name: str) -> None:
    lmm = subject(name)
    together = lmm.family.encode_batch(lmm.processor, QUESTIONS, MIXED, ANSWERS)
    assert together.labels is not None
    with torch.inference_mode():
        rows = lmm.model(**together.tensors).logits
        for i, question in enumerate(QUESTIONS):
            alone = lmm.family.encode_batch(lmm.processor, [question], [MIXED[i]], [ANSWERS[i]])
            assert slots(lmm, alone.tensors["input_ids"]) == slots(lmm, together.tensors["input_ids"])[i : i + 1]
            loss = lmm.model(**alone.tensors, labels=alone.labels).loss
            shifted = torch.nn.functional.cross_entropy(rows[i, :-1], together.labels[i, 1:])
            assert torch.isfinite(loss)
            torch.testing.assert_close(shifted, loss, atol=1e-4, rtol=1e-4)
    orders = [rows[i, together.lengths[i] - 2] for i in (0, 4)]
    assert not torch.equal(*orders), "which picture comes first matters"


@pytest.mark.parametrize("name", SUBJECTS)
def test_answers_of_a_mixed_batch_are_those_of_its_samples(name: str) -> None:
    lmm = subject(name)
    together = generate_answers(lmm, QUESTIONS, MIXED, 5)
    alone = [generate_answers(lmm, [question], [MIXED[i]], 5)[0] for i, question in enumerate(QUESTIONS)]
    other = [i for i in range(len(QUESTIONS)) if together[i].text != alone[i].text]
    assert all(min(together[i].logit_margin, alone[i].logit_margin) < NEAR_TIE for i in other)
    assert len(other) < 2
    assert all(0 < said.tokens <= 5 for said in together)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_model_still_answers_beside_samples_with_more_pictures(name: str) -> None:
    """One picture of one colour; what else is in the batch does not change what it says, and it says something."""
    lmm = subject(name)
    red = [Image.new("RGB", (64, 64), (220, 20, 20))]
    questions = ["What colour is it?\nAnswer the question using a single word or phrase."] * 3
    said = generate_answers(lmm, questions, [red, red * 2, []], 8)
    assert said[0].text == generate_answers(lmm, questions[:1], [red], 8)[0].text != ""


def test_two_pictures_of_qwen_have_positions_of_their_own() -> None:
    """Written by hand: a picture of 4 x 4 tokens starts behind its opening token and takes four positions."""
    lmm = subject("tiny_qwen2_5_vl")
    batch = lmm.family.encode_batch(lmm.processor, ["?"], [SIDE_BY_SIDE]).tensors
    with torch.inference_mode(), Positions(lmm) as seen:
        lmm.model(**batch)
    time, row, column = seen[0][:, 0].tolist()
    assert time[:3] == [0, 1, 2]  # <|im_start|>, user, <|vision_start|>
    for at, first in ((3, 3), (21, 9)):
        assert time[at : at + 16] == [first] * 16
        assert row[at : at + 16] == [first + i // 4 for i in range(16)]
        assert column[at : at + 16] == [first + i % 4 for i in range(16)]
    assert time[19:21] == row[19:21] == column[19:21] == [7, 8]  # <|vision_end|>, <|vision_start|>
    rest = list(range(13, 13 + len(time) - 37))  # <|vision_end|>, the question and what follows it
    assert time[37:] == row[37:] == column[37:] == rest
