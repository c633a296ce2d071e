"""The two kinds of forward pass: forced, along a given answer; free, along the answer that the model generates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor

from lmm_forget.errors import ConfigError
from lmm_forget.models.family import IGNORE_INDEX
from lmm_forget.models.loading import LMM
from lmm_forget.probes.decoder_blocks import Activations, DecoderBlocks, record_activations
from lmm_forget.probes.output_shift import compute_distribution_metrics
from lmm_forget.recipes.plain import has_plain_output_head
from lmm_forget.tasks.task import Sample, Task


@dataclass(frozen=True, eq=False)
class PromptSet:
    """A task whose questions are used as prompts: `samples`, at most `max_samples` of its test split.

    `task_config` is the task's configuration, `data_fingerprint` the fingerprint of the split.
    """

    task: Task
    task_config: Mapping[str, Any]
    samples: Sequence[Sample]
    max_samples: int
    data_fingerprint: str


class GreedyAnswer(Protocol):
    """A greedy answer: its text and its number of tokens, the end token included."""

    @property
    def text(self) -> str:
        """The generated text."""

    @property
    def tokens(self) -> int:
        """Its length in tokens, the end token included."""


GreedyGenerator = Callable[..., Sequence[GreedyAnswer]]
"""Answers a batch greedily: (lmm, questions, images, max_new_tokens, logits_processors, system_prompts) -> answers."""


@dataclass(frozen=True)
class ForcedPositions:
    """The n answer positions of a forced batch: their sample's number among the prompts, their token, their states."""

    sample_indices: Tensor
    target_tokens: Tensor
    activations: Activations


def make_prompt_batches(
    prompt_set: PromptSet, sample_indices: Sequence[int], batch_size: int
) -> Iterator[list[tuple[int, Sample]]]:
    """The selected samples in batches, with images of equal size and questions of similar length together."""
    for start in range(0, len(sample_indices), 8 * batch_size):
        window = [(i, prompt_set.samples[i]) for i in sample_indices[start : start + 8 * batch_size]]
        window.sort(key=lambda item: ([image.size for image in item[1].images], len(item[1].question), item[0]))
        for first in range(0, len(window), batch_size):
            yield window[first : first + batch_size]


def run_forced_pass(
    lmm: LMM,
    blocks: DecoderBlocks,
    prompt_set: PromptSet,
    batch: Sequence[tuple[int, Sample]],
    answers: Sequence[str],
    record_blocks: bool,
) -> ForcedPositions:
    """Run a batch along `answers` (one per sample) and record the states that predict their tokens.

    The position that predicts a token is the one before it in the decoder's sequence, image tokens included.
    `record_blocks` records the states of every block too. Raises ConfigError for a model whose logits are not just its
    output head applied to the final hidden state.
    """
    if not has_plain_output_head(lmm.model):
        raise ConfigError(f"probe: {type(lmm.model).__name__} adds to its output head; it cannot be probed")
    encoded = lmm.family.encode_batch(
        lmm.processor,
        [prompt_set.task.format_question(sample, for_training=False) for _, sample in batch],
        [list(sample.images) for _, sample in batch],
        list(answers),
        [sample.system for _, sample in batch],
    )
    assert encoded.labels is not None
    device, dtype = lmm.model.device, lmm.model.dtype
    tensors = {
        key: t.to(device, dtype) if t.is_floating_point() else t.to(device) for key, t in encoded.tensors.items()
    }
    labels = encoded.labels.to(device)
    row, positions = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    activations = record_activations(lmm, blocks, tensors, (row, positions), record_blocks)
    sample_indices = torch.tensor([i for i, _ in batch], device=device)
    return ForcedPositions(sample_indices[row], labels[row, positions + 1], activations)


class _DistributionRecorder(LogitsProcessor):
    """Records the metrics of every row's distribution at every generation step; changes no score."""

    def __init__(self, token_sets: Mapping[str, Tensor]) -> None:
        self._token_sets = token_sets
        self.step_metrics: list[dict[str, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Record one step; `scores` is [B, vocabulary]."""
        metrics = compute_distribution_metrics(scores, self._token_sets)
        self.step_metrics.append({name: values.double().cpu() for name, values in metrics.items()})
        return scores


def run_free_pass(
    lmm: LMM,
    generate_greedily: GreedyGenerator,
    prompt_set: PromptSet,
    batch: Sequence[tuple[int, Sample]],
    token_sets: Mapping[str, Tensor],
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Let the model answer a batch; yields (sample number, answer, metrics by name [positions, with the end token])."""
    recorder = _DistributionRecorder(token_sets)
    answers = generate_greedily(
        lmm,
        [prompt_set.task.format_question(sample, for_training=False) for _, sample in batch],
        [sample.images for _, sample in batch],
        prompt_set.task.max_new_tokens,
        logits_processors=[recorder],
        system_prompts=[sample.system for _, sample in batch],
    )
    stacked = {
        name: torch.stack([step[name] for step in recorder.step_metrics], dim=1) for name in recorder.step_metrics[0]
    }
    for k, ((number, _), answer) in enumerate(zip(batch, answers, strict=True)):
        yield number, answer.text, {name: v[k, : answer.tokens].numpy() for name, v in stacked.items()}
