"""One process, one device."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.strategies import Strategy
from torch import nn

from lmm_forget.training.strategies.stage_strategy import StageStrategy


class SingleDeviceStage(StageStrategy):
    """The whole model on the one device of the job."""

    def make_lightning_strategy(self) -> Strategy | str:
        """Lightning's own choice for one device."""
        return "auto"

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Nothing: there is one rank."""
