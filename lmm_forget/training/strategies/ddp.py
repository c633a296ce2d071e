"""Data parallelism: every rank holds the whole model, gradients are averaged once a step."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.strategies import Strategy
from torch import nn

from lmm_forget.training.strategies.gradient_averaging import average_gradients
from lmm_forget.training.strategies.shared_mesh import SharedMeshStrategy
from lmm_forget.training.strategies.stage_strategy import StageStrategy


class ReplicatedStage(StageStrategy):
    """The same model on all ranks.

    PyTorch's DDP wrapper is not used: it sends gradients from within the last backward pass, when ranks can no longer
    agree that one of them ran out of memory, and it fails where a batch of one rank has no images.
    """

    def make_lightning_strategy(self) -> Strategy | str:
        """The job's own process group; Lightning's choice where the job has one process."""
        return "auto" if self.process_group.size == 1 else SharedMeshStrategy(self.process_group)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """In buckets, after the last micro-batch of a step."""
        average_gradients(parameters, self.process_group)
