"""The base model's hidden states, saved once; every later model is compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from lmm_forget.errors import StoreError
from lmm_forget.probes.decoder_blocks import Activations
from lmm_forget.store.checked_tensors import read_checked_tensors, write_checked_tensors

BLOCK_STATE_NAMES = ("embedding", "attention", "mlp", "scale")


@dataclass(frozen=True)
class ReferenceActivations:
    """The base's hidden states at the positions of the forced answers, on the CPU.

    `answers` are the forced texts by sample. Sample i's positions are rows row_offsets[i] : row_offsets[i + 1] of
    `target_tokens` [N] and of states["final"] [N, d], and block_row_offsets[i] : block_row_offsets[i + 1] of the states
    in `BLOCK_STATE_NAMES` (an empty range for a sample without them); attention and mlp are [L, rows, d].
    """

    answers: list[str]
    row_offsets: list[int]
    block_row_offsets: list[int]
    target_tokens: Tensor
    states: dict[str, Tensor]

    def get_activations(
        self, sample_indices: Tensor, target_tokens: Tensor, with_blocks: bool, device: torch.device
    ) -> Activations:
        """The base's states for a batch of n positions, position k of sample `sample_indices[k]`, on `device`.

        Raises StoreError if `target_tokens` [n] are not the tokens that the base was forced to.
        """
        order = list(dict.fromkeys(sample_indices.tolist()))
        rows = torch.cat([torch.arange(self.row_offsets[i], self.row_offsets[i + 1]) for i in order])
        if len(rows) != len(sample_indices) or not torch.equal(self.target_tokens[rows], target_tokens.cpu()):
            raise StoreError("the base's recorded states belong to other answers; delete the store's probes folder")
        final = self.states["final"][rows].to(device)
        if not with_blocks:
            return Activations(final)
        rows = torch.cat([torch.arange(self.block_row_offsets[i], self.block_row_offsets[i + 1]) for i in order])
        return Activations(
            final_hidden=final,
            embedding=self.states["embedding"][rows].to(device),
            attention=self.states["attention"][:, rows].to(device),
            mlp=self.states["mlp"][:, rows].to(device),
            norm_scale=self.states["scale"][rows].to(device),
        )

    def save(self, path: Path) -> None:
        """Write a safetensors file, completely or not at all."""
        metadata = {"answers": self.answers, "first": self.row_offsets, "deep": self.block_row_offsets}
        write_checked_tensors(path, metadata, {"target": self.target_tokens, **self.states})

    @classmethod
    def load(cls, path: Path) -> ReferenceActivations:
        """Read what `save` wrote. Raises StoreError if it cannot be read, or a bit of it changed."""
        try:
            metadata, tensors = read_checked_tensors(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise StoreError(f"{path} is damaged: {error}") from None
        target_tokens = tensors.pop("target")
        return cls(metadata["answers"], metadata["first"], metadata["deep"], target_tokens, tensors)


class ReferenceCollector:
    """Collects the base's states batch by batch, in any order of the samples; `answers` are the forced texts."""

    def __init__(self, answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self._final_states: dict[int, tuple[Tensor, Tensor]] = {}
        self._block_states: dict[int, dict[str, Tensor]] = {}

    def add_batch(self, sample_indices: Tensor, target_tokens: Tensor, activations: Activations) -> None:
        """Add the states at n positions, position k of sample `sample_indices[k]`."""
        for number in sample_indices.unique().tolist():
            rows = (sample_indices == number).nonzero().squeeze(1)
            self._final_states[number] = target_tokens[rows].cpu(), activations.final_hidden[rows].cpu()
            if activations.attention is not None and activations.mlp is not None:
                assert activations.embedding is not None and activations.norm_scale is not None
                self._block_states[number] = {
                    "embedding": activations.embedding[rows].cpu(),
                    "attention": activations.attention[:, rows].cpu(),
                    "mlp": activations.mlp[:, rows].cpu(),
                    "scale": activations.norm_scale[rows].cpu(),
                }

    def build_reference(self) -> ReferenceActivations:
        """All states, in the order of the samples. Every sample must have been added."""
        row_offsets, block_row_offsets = [0], [0]
        for i in range(len(self._answers)):
            row_offsets.append(row_offsets[-1] + len(self._final_states[i][0]))
            block_row_offsets.append(
                block_row_offsets[-1] + (len(self._block_states[i]["scale"]) if i in self._block_states else 0)
            )
        order = range(len(self._answers))
        states = {"final": torch.cat([self._final_states[i][1] for i in order])}
        for name in BLOCK_STATE_NAMES if self._block_states else ():
            axis = 1 if name in ("attention", "mlp") else 0
            states[name] = torch.cat([self._block_states[i][name] for i in order if i in self._block_states], dim=axis)
        return ReferenceActivations(
            self._answers,
            row_offsets,
            block_row_offsets,
            torch.cat([self._final_states[i][0] for i in order]),
            states,
        )
