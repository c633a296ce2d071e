"""The module whose forward pass is a method's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM
    from lmm_forget.recipes.method import Method


class LossModule(nn.Module):
    """A model with a method's loss on top: whatever the loss touches runs inside this one module's forward."""

    def __init__(self, lmm: LMM, method: Method) -> None:
        super().__init__()
        self.model = lmm.model
        self._lmm, self._method = lmm, method

    def forward(self, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Mean token cross-entropy of each sample, [B]; see `Method.loss`."""
        return self._method.loss(self._lmm, batch, labels)
