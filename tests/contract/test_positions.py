"""Qwen's three-dimensional positions: those of `get_rope_index`, whatever the padding, and onwards while decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lmm_forget.models.loading import LMM
from tests.contract.test_recipes import LESSON
from tests.models.subjects import subject

QWENS = ("qwen2_5_vl", "qwen3_vl", "tiny_qwen2_5_vl")


def expected(lmm: LMM, batch: dict[str, Tensor]) -> Tensor:
    """Positions [3, B, L] of a batch as the model's own function gives them."""
    positions, _ = lmm.model.model.get_rope_index(
        batch["input_ids"],
        batch["mm_token_type_ids"],
        image_grid_thw=batch["image_grid_thw"],
        attention_mask=batch["attention_mask"],
    )
    return positions


class Positions:
    """Collects the positions that a model's decoder computes its rotations from."""

    def __init__(self, lmm: LMM) -> None:
        self.seen: list[Tensor] = []
        layer = lmm.components.text_model.rotary_emb
        self.handle = layer.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen.append((args[1] if len(args) > 1 else kwargs["position_ids"])[-3:])

    def __enter__(self) -> list[Tensor]:
        return self.seen

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


@pytest.mark.parametrize("answers", [True, False], ids=["right padding", "left padding"])
@pytest.mark.parametrize("name", QWENS)
def test_positions_are_three_dimensional_under_both_paddings(name: str, answers: bool) -> None:
    lmm = subject(name)
    questions, pictures, said = zip(*((i.question, list(i.images), i.answer) for i in LESSON), strict=True)
    batch = lmm.family.encode_batch(lmm.processor, questions, pictures, said if answers else None).tensors
    padded = batch["attention_mask"] == 0
    assert padded.any() and padded[:, -1].any() == answers
    kinds, ids = batch["mm_token_type_ids"], batch["input_ids"]
    assert torch.equal(kinds == 1, ids == lmm.processor.image_token_id)
    with torch.inference_mode(), Positions(lmm) as seen:
        lmm.model(**batch)
    wanted = expected(lmm, batch)
    real = ~padded
    assert torch.equal(seen[0][:, real], wanted[:, real])
    assert not torch.equal(wanted[1], wanted[2]), "rows and columns of a picture differ"
    # A sample alone, without padding, has the same positions: padding shifts nothing.
    for i, question in enumerate(questions):
        alone = lmm.family.encode_batch(
            lmm.processor, [question], [pictures[i]], [said[i]] if answers else None
        ).tensors
        if "image_grid_thw" in alone:
            assert torch.equal(seen[0][:, i, real[i]], expected(lmm, alone)[:, 0])


@pytest.mark.parametrize("name", QWENS)
def test_decoding_goes_on_behind_the_prompt(name: str) -> None:
    lmm = subject(name)
    items = LESSON[:3]
    batch = lmm.family.encode_batch(lmm.processor, [i.question for i in items], [list(i.images) for i in items]).tensors
    last = expected(lmm, batch).masked_fill(batch["attention_mask"] == 0, -1).amax(dim=(0, 2))
    with torch.inference_mode(), Positions(lmm) as seen:
        lmm.model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    for step, positions in enumerate(seen[1:], start=1):
        assert torch.equal(positions, (last + step)[None, :, None].expand(3, -1, 1))


def test_without_the_processor_s_token_types_positions_would_be_flat_or_refused() -> None:
    """Why every key of the processor is handed on."""
    for name in QWENS:
        lmm = subject(name)
        batch = dict(lmm.family.encode_batch(lmm.processor, ["?"], [list(LESSON[1].images)]).tensors)
        wanted = expected(lmm, batch)
        del batch["mm_token_type_ids"]
        with torch.inference_mode(), Positions(lmm) as seen:
            try:
                lmm.model(**batch)
            except ValueError as error:  # newer models notice
                assert "mm_token_type_ids" in str(error)
            else:
                assert not torch.equal(seen[0].expand_as(wanted), wanted)
