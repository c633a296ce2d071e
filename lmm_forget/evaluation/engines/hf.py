"""Greedy answers by the model's own `generate`, as Hugging Face transformers has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from lmm_forget.errors import LmmForgetError
from lmm_forget.evaluation.engines.base import EncodedBatch, Generation
from lmm_forget.evaluation.question_encoding import encode_prompts
from lmm_forget.models.loading import LMM


class HuggingFaceEngine:
    """Generates with a model in this process; see `Engine`."""

    def __init__(self, lmm: LMM) -> None:
        self.lmm = lmm

    def generate(self, batch: EncodedBatch) -> list[Generation]:
        """See `Engine.generate`. Raises LmmForgetError when the logits are not finite (a diverged training)."""
        return generate_from_inputs(self.lmm, batch.inputs, batch.max_new_tokens)


class _LogitMarginRecorder(LogitsProcessor):
    """Records the margin between the two best logits of every row [B] at every step, and changes nothing."""

    def __init__(self) -> None:
        self.step_margins: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Record one step; `scores` is [B, vocabulary]."""
        top_two = scores.topk(2, dim=-1).values.float()
        self.step_margins.append(top_two[:, 0] - top_two[:, 1])
        return scores


@contextmanager
def use_greedy_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Ignore the checkpoint's generation defaults (sampling, penalties), which would fill options left open."""
    checkpoint_config = model.generation_config
    model.generation_config = GenerationConfig()
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.generation_config = checkpoint_config
        model.train(was_training)


def generate_answers(
    lmm: LMM,
    questions: Sequence[str],
    images: Sequence[Sequence[Image]],
    max_new_tokens: int,
    logits_processors: Sequence[LogitsProcessor] = (),
    system_prompts: Sequence[str | None] | None = None,
) -> list[Generation]:
    """Answer a batch of questions greedily, in the dtype of the weights, without autocast.

    `system_prompts` [B] may be None, as a whole or for single questions.
    `logits_processors` are called with the scores [B, vocabulary] of every step and must return them unchanged.

    Raises DataError when a prompt and its answer do not fit the model's context, and LmmForgetError when the
    logits are not finite (as after a diverged training).
    """
    batch = encode_prompts(lmm.family, lmm.processor, questions, images, max_new_tokens, system_prompts)
    return generate_from_inputs(lmm, batch, max_new_tokens, logits_processors)


def generate_from_inputs(
    lmm: LMM,
    inputs: Mapping[str, Tensor],
    max_new_tokens: int,
    logits_processors: Sequence[LogitsProcessor] = (),
) -> list[Generation]:
    """Answer encoded prompts; see `generate_answers`."""
    device, dtype = lmm.model.device, lmm.model.dtype
    inputs = {
        key: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
        for key, tensor in inputs.items()
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
    margin_recorder = _LogitMarginRecorder()
    model: Any = lmm.model  # its declared type hides `generate`
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), use_greedy_defaults(lmm.model):
        output = model.generate(
            **inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList([margin_recorder, *logits_processors]),
        )
    new_tokens = output[:, inputs["input_ids"].shape[1] :].cpu()
    return _decode_generations(lmm, new_tokens, torch.stack(margin_recorder.step_margins, dim=1).cpu())


def _decode_generations(lmm: LMM, new_tokens: Tensor, margins: Tensor) -> list[Generation]:
    """Cut every row of `new_tokens` [B, steps] at its end token; keep the smallest of its `margins` [B, steps]."""
    is_end = torch.isin(new_tokens, torch.tensor(lmm.end_token_ids))
    steps = new_tokens.shape[1]
    ended = is_end.any(dim=1)
    num_text_tokens = torch.where(ended, is_end.int().argmax(dim=1), steps)  # tokens before the end token
    num_tokens = torch.where(ended, num_text_tokens + 1, steps)
    generations = []
    for row, text_length, tokens, row_margins in zip(
        new_tokens, num_text_tokens.tolist(), num_tokens.tolist(), margins, strict=True
    ):
        smallest_margin = row_margins[:tokens].min().item()
        if smallest_margin != smallest_margin:  # NaN
            raise LmmForgetError("the model's logits are not finite; its training diverged (lower the learning rate)")
        text = lmm.processor.tokenizer.decode(row[:text_length], skip_special_tokens=True)
        generations.append(Generation(text=text, tokens=tokens, logit_margin=smallest_margin))
    return generations
