"""A change of a weight matrix as two thin factors: what a delta may hold in place of the whole tensor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LowRankUpdate:
    """W becomes W + scale * B A, with `a` [rank, in] and `b` [out, rank]; W is the tensor before the stage."""

    a: Tensor
    b: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError for factors that do not fit each other."""
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[0] != self.b.shape[1]:
            raise ValueError(f"factors {tuple(self.b.shape)} and {tuple(self.a.shape)} cannot be multiplied")

    def apply_to(self, base: Tensor) -> Tensor:
        """The changed tensor: computed in fp32 on the CPU (the same bits for whoever asks), rounded to `base.dtype`.

        The result lies on the device of `base`, which stays as it is. Raises ValueError for a base of another shape.
        """
        if base.shape != (self.b.shape[0], self.a.shape[1]):
            raise ValueError(f"an update of shape {(self.b.shape[0], self.a.shape[1])} on {tuple(base.shape)}")
        update = self.b.detach().cpu().float() @ self.a.detach().cpu().float()
        changed = base.detach().cpu().float() + self.scale * update
        return changed.to(base.dtype).to(base.device)
