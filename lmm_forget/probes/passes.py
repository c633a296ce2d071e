"""The two ways of walking through an answer: made to say a given one (`forced`), or saying its own (`free`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor

from lmm_forget.errors import ConfigError
from lmm_forget.models.family import IGNORE
from lmm_forget.probes.blocks import Blocks, Written, record
from lmm_forget.probes.output_shift import distribution_figures
from lmm_forget.recipes.plain import answer_rows_suffice
from lmm_forget.tasks.base import Sample, Task

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM


@dataclass(frozen=True, eq=False)
class Prompts:
    """A task with the samples whose questions are used as prompts: at most `limit` of its test split.

    `node` is its configuration, `data` the fingerprint of the split.
    """

    task: Task
    node: Mapping[str, Any]
    samples: Sequence[Sample]
    limit: int
    data: str


class Said(Protocol):
    """A greedy answer: its text and its number of tokens, the end token included."""

    @property
    def text(self) -> str:
        """What was said."""

    @property
    def tokens(self) -> int:
        """Its length in tokens."""


Greedy = Callable[..., Sequence[Said]]
"""Answers a batch greedily: (lmm, questions, images, max_new_tokens, listeners, systems) -> one answer each."""


@dataclass(frozen=True)
class Rows:
    """Positions of a forced batch: `sample` (its number among the prompts), `target` token, what was written; [n]."""

    sample: Tensor
    target: Tensor
    written: Written


def batches(prompts: Prompts, chosen: Sequence[int], size: int) -> Iterator[list[tuple[int, Sample]]]:
    """The chosen samples in batches, images of equal size and questions of equal length side by side."""
    for start in range(0, len(chosen), 8 * size):
        window = [(i, prompts.samples[i]) for i in chosen[start : start + 8 * size]]
        window.sort(
            key=lambda item: ([image.size for image in item[1].images], len(item[1].question), item[0])
        )
        for first in range(0, len(window), size):
            yield window[first : first + size]


def forced(
    lmm: LMM,
    blocks: Blocks,
    prompts: Prompts,
    batch: Sequence[tuple[int, Sample]],
    answers: Sequence[str],
    deep: bool,
) -> Rows:
    """Walk a batch through `answers` (one per sample) and keep what was written where their tokens are predicted.

    The position that predicts a token is the one before it in the sequence as the decoder sees it, image
    tokens included. Raises ConfigError for a model whose logits are more than its head on the final state.
    """
    if not answer_rows_suffice(lmm.model):
        raise ConfigError(f"probe: {type(lmm.model).__name__} adds to its output head; it cannot be probed")
    encoded = lmm.family.encode(
        lmm.processor,
        [prompts.task.question(sample, training=False) for _, sample in batch],
        [list(sample.images) for _, sample in batch],
        list(answers),
        [sample.system for _, sample in batch],
    )
    assert encoded.labels is not None
    device, dtype = lmm.model.device, lmm.model.dtype
    tensors = {
        key: t.to(device, dtype) if t.is_floating_point() else t.to(device)
        for key, t in encoded.batch.items()
    }
    labels = encoded.labels.to(device)
    row, at = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    written = record(lmm, blocks, tensors, (row, at), deep)
    numbers = torch.tensor([i for i, _ in batch], device=device)
    return Rows(numbers[row], labels[row, at + 1], written)


class _Listener(LogitsProcessor):
    """Notes the figures of every row's distribution at every step, and changes nothing."""

    def __init__(self, sets: Mapping[str, Tensor]) -> None:
        self._sets = sets
        self.steps: list[dict[str, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Note one step; `scores` is [B, vocabulary]."""
        figures = distribution_figures(scores, self._sets)
        self.steps.append({name: values.double().cpu() for name, values in figures.items()})
        return scores


def free(
    lmm: LMM,
    greedy: Greedy,
    prompts: Prompts,
    batch: Sequence[tuple[int, Sample]],
    sets: Mapping[str, Tensor],
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Let the model answer; yields (sample number, text, figures [positions] by name), the end token's position too."""
    listener = _Listener(sets)
    said = greedy(
        lmm,
        [prompts.task.question(sample, training=False) for _, sample in batch],
        [sample.images for _, sample in batch],
        prompts.task.max_new_tokens,
        listeners=[listener],
        systems=[sample.system for _, sample in batch],
    )
    stacked = {
        name: torch.stack([step[name] for step in listener.steps], dim=1) for name in listener.steps[0]
    }
    for k, ((number, _), answer) in enumerate(zip(batch, said, strict=True)):
        yield number, answer.text, {name: v[k, : answer.tokens].numpy() for name, v in stacked.items()}
