"""What an engine is given and what it gives back; the cache, the batches and the scores are above it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of questions as the model reads them: keyword arguments of the model, each tensor [B, ...].

    `sample_ids` [B] name the samples in messages; `max_new_tokens` bounds every answer.
    """

    sample_ids: tuple[str, ...]
    inputs: dict[str, Tensor]
    max_new_tokens: int


@dataclass(frozen=True)
class Generation:
    """A greedy answer: its text, its number of tokens (the end token included) and its smallest logit margin."""

    text: str
    tokens: int
    logit_margin: float


class Engine(Protocol):
    """Generates greedy answers with the weights that its model has at the time of the call."""

    def generate(self, batch: EncodedBatch) -> list[Generation]:
        """One answer for every question of the batch, in order.

        Raises an exception when any of them cannot be generated (`evaluate` adds the task and the samples to the
        message); a failure never becomes an empty answer.
        """
