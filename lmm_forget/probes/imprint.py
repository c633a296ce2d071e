"""What the base model wrote: the one copy of hidden states that every later model is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lmm_forget.errors import StoreError
from lmm_forget.probes.blocks import Written
from lmm_forget.store.looks import load_states, save_states

DEEP = ("embedding", "attention", "mlp", "scale")


@dataclass(frozen=True)
class Imprint:
    """The base's states along the forced answers, on the CPU.

    `answers` are the forced texts by sample; sample i's positions are rows first[i] : first[i + 1] of `target`
    [N] and `final` [N, d], and deep[i] : deep[i + 1] of the blocks' states (an empty range where it has none).
    """

    answers: list[str]
    first: list[int]
    deep: list[int]
    target: Tensor
    states: dict[str, Tensor]

    def of(self, samples: Tensor, targets: Tensor, deep: bool, device: torch.device) -> Written:
        """The base's states for a batch whose positions [n] belong to `samples` [n], each one's in order.

        Raises StoreError when the positions' tokens are not those that the base was led along.
        """
        order = list(dict.fromkeys(samples.tolist()))
        rows = torch.cat([torch.arange(self.first[i], self.first[i + 1]) for i in order])
        if len(rows) != len(samples) or not torch.equal(self.target[rows], targets.cpu()):
            raise StoreError(
                "the base's recorded states belong to other answers; delete the store's probes folder"
            )
        final = self.states["final"][rows].to(device)
        if not deep:
            return Written(final)
        rows = torch.cat([torch.arange(self.deep[i], self.deep[i + 1]) for i in order])
        return Written(
            final=final,
            embedding=self.states["embedding"][rows].to(device),
            attention=self.states["attention"][:, rows].to(device),
            mlp=self.states["mlp"][:, rows].to(device),
            scale=self.states["scale"][rows].to(device),
        )

    def save(self, path: Path) -> None:
        """Write a safetensors file that appears whole or not at all."""
        plan = {"answers": self.answers, "first": self.first, "deep": self.deep}
        save_states(path, plan, {"target": self.target, **self.states})

    @classmethod
    def load(cls, path: Path) -> Imprint:
        """Read what `save` wrote. Raises StoreError if it cannot be read, or a bit of it changed."""
        from safetensors import SafetensorError

        try:
            plan, tensors = load_states(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise StoreError(f"{path} is damaged: {error}") from None
        target = tensors.pop("target")
        return cls(plan["answers"], plan["first"], plan["deep"], target, tensors)


class ImprintMaker:
    """Collects the base's states batch by batch, in whatever order the samples come."""

    def __init__(self, answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self._shallow: dict[int, tuple[Tensor, Tensor]] = {}
        self._deep: dict[int, dict[str, Tensor]] = {}

    def take(self, sample: Tensor, target: Tensor, written: Written) -> None:
        """Keep what was written at n positions of samples `sample` [n]."""
        for number in sample.unique().tolist():
            rows = (sample == number).nonzero().squeeze(1)
            self._shallow[number] = target[rows].cpu(), written.final[rows].cpu()
            if written.attention is not None and written.mlp is not None:
                assert written.embedding is not None and written.scale is not None
                self._deep[number] = {
                    "embedding": written.embedding[rows].cpu(),
                    "attention": written.attention[:, rows].cpu(),
                    "mlp": written.mlp[:, rows].cpu(),
                    "scale": written.scale[rows].cpu(),
                }

    def imprint(self) -> Imprint:
        """Everything, in the samples' order."""
        first, deep = [0], [0]
        for i in range(len(self._answers)):
            first.append(first[-1] + len(self._shallow[i][0]))
            deep.append(deep[-1] + (len(self._deep[i]["scale"]) if i in self._deep else 0))
        order = range(len(self._answers))
        states = {"final": torch.cat([self._shallow[i][1] for i in order])}
        for name in DEEP if self._deep else ():
            axis = 1 if name in ("attention", "mlp") else 0
            states[name] = torch.cat([self._deep[i][name] for i in order if i in self._deep], dim=axis)
        return Imprint(self._answers, first, deep, torch.cat([self._shallow[i][0] for i in order]), states)
