"""Greedy answers to one batch of questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    ProcessorMixin,
)

from lmm_forget.errors import DataError, LmmForgetError

if TYPE_CHECKING:
    from lmm_forget.models.family import Family
    from lmm_forget.models.loading import LMM


@dataclass(frozen=True)
class Said:
    """A greedy answer: its text, its number of tokens (the end token included) and its smallest gap."""

    text: str
    tokens: int
    gap: float


class _Gaps(LogitsProcessor):
    """Notes the gap between the two best logits of every row [B] at every step, and changes nothing."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Record one step; `scores` is [B, vocabulary]."""
        best = scores.topk(2, dim=-1).values.float()
        self.steps.append(best[:, 0] - best[:, 1])
        return scores


@contextmanager
def neutral(model: PreTrainedModel) -> Iterator[None]:
    """Set the checkpoint's generation defaults (sampling, penalties) aside; they fill options left open."""
    ours = model.generation_config
    model.generation_config = GenerationConfig()
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.generation_config = ours
        model.train(training)


def generate(
    lmm: LMM,
    questions: Sequence[str],
    images: Sequence[Sequence[Image]],
    max_new_tokens: int,
    listeners: Sequence[LogitsProcessor] = (),
    systems: Sequence[str | None] | None = None,
) -> list[Said]:
    """Answer a batch of questions greedily, in the dtype of the weights, without autocast.

    `systems` are their system prompts, None for one (or all) without.
    `listeners` are called with the scores [B, vocabulary] of every step and hand them on unchanged.

    Raises DataError when a prompt and its answer do not fit the model's context, and LmmForgetError when the
    logits are not finite (as after a diverged training).
    """
    batch = prompts(lmm.family, lmm.processor, questions, images, max_new_tokens, systems)
    return answer(lmm, batch, max_new_tokens, listeners)


def prompts(
    family: Family,
    processor: ProcessorMixin,
    questions: Sequence[str],
    images: Sequence[Sequence[Image]],
    max_new_tokens: int,
    systems: Sequence[str | None] | None = None,
) -> dict[str, Tensor]:
    """A batch of questions as the model reads them. Raises DataError when one and its answer exceed the context."""
    encoded = family.encode(processor, list(questions), [list(i) for i in images], systems=systems)
    for i, length in enumerate(encoded.lengths):
        if length + max_new_tokens > family.context:
            raise DataError(
                f"sample {i} of the batch: {length} prompt tokens and {max_new_tokens} answer tokens are "
                f"more than the model's context of {family.context}"
            )
    return encoded.batch


def answer(
    lmm: LMM, batch: Mapping[str, Tensor], max_new_tokens: int, listeners: Sequence[LogitsProcessor] = ()
) -> list[Said]:
    """What the model says to a batch of prompts; see `generate`."""
    device, dtype = lmm.model.device, lmm.model.dtype
    batch = {
        key: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
        for key, tensor in batch.items()
    }
    pad = lmm.processor.tokenizer.pad_token_id
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(lmm.end_token_ids),
        pad_token_id=lmm.end_token_ids[0] if pad is None else pad,
    )
    gaps = _Gaps()
    model: Any = lmm.model  # its declared type hides `generate`
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), neutral(lmm.model):
        output = model.generate(
            **batch, generation_config=config, logits_processor=LogitsProcessorList([gaps, *listeners])
        )
    new = output[:, batch["input_ids"].shape[1] :].cpu()
    return _read(lmm, new, torch.stack(gaps.steps, dim=1).cpu())


def _read(lmm: LMM, new: Tensor, gaps: Tensor) -> list[Said]:
    """Cut every row of `new` [B, steps] at its end token; `gaps` [B, steps] count up to there."""
    is_end = torch.isin(new, torch.tensor(lmm.end_token_ids))
    steps = new.shape[1]
    ended = is_end.any(dim=1)
    first = torch.where(ended, is_end.int().argmax(dim=1), steps)  # tokens before the end token
    counted = torch.where(ended, first + 1, steps)
    said = []
    for row, before, tokens, gap in zip(new, first.tolist(), counted.tolist(), gaps, strict=True):
        smallest = gap[:tokens].min().item()
        if smallest != smallest:  # NaN
            raise LmmForgetError(
                "the model's logits are not finite; its training diverged (lower the learning rate)"
            )
        text = lmm.processor.tokenizer.decode(row[:before], skip_special_tokens=True)
        said.append(Said(text=text, tokens=tokens, gap=smallest))
    return said
