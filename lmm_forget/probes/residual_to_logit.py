"""How much each block of the decoder writes of the change in logits, without a logit being computed.

With h the output of a block at a position, W the unembedding, b the base and t the tuned model, and D = W_t - W_b:

    || W_t h_t - W_b h_b ||^2 = d' G d + 2 d' C h_b + h_b' E h_b,     d = h_t - h_b,
    G = W_t' W_t,  C = W_t' D,  E = D' D                              (hidden x hidden, in fp64)

Expanding the two norms and their product instead cancels: it loses everything at relative changes below 1e-3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lmm_forget.probes.blocks import Written

VOCABULARY_AT_ONCE = 8192
KINDS = ("attention", "mlp")


@dataclass(frozen=True)
class Head:
    """What turns the stream into logits: the unembedding `weight` [V, d] and the final norm's `gain` [d]."""

    weight: Tensor
    gain: Tensor


@dataclass(frozen=True)
class Grams:
    """G, C and E of the module's formula, [d, d] in fp64; C and E are None where both models share one head."""

    g: Tensor
    c: Tensor | None
    e: Tensor | None

    @classmethod
    def of(cls, tuned: Tensor, base: Tensor, *, centred: bool = False) -> Grams:
        """From the unembeddings [V, d]; `centred` takes from each column its mean over the vocabulary.

        A shift common to all logits changes no probability; centred Grams do not see it.
        """
        shared = tuned is base
        width = tuned.shape[1]
        mean_t = tuned.double().mean(dim=0) if centred else 0.0
        mean_b = mean_t if shared or not centred else base.double().mean(dim=0)
        g, c, e = (torch.zeros(width, width, dtype=torch.float64, device=tuned.device) for _ in range(3))
        for rows_t, rows_b in zip(
            tuned.split(VOCABULARY_AT_ONCE), base.split(VOCABULARY_AT_ONCE), strict=True
        ):
            w = rows_t.double() - mean_t
            g += w.T @ w
            if not shared:
                d = w - (rows_b.double() - mean_b)
                c += w.T @ d
                e += d.T @ d
        return cls(g, None if shared else c, None if shared else e)

    def inner(self, d: Tensor, b: Tensor, d2: Tensor, b2: Tensor) -> Tensor:
        """<W_t d + D b, W_t d2 + D b2> for each row of [..., d] tensors in fp64."""
        value = ((d @ self.g) * d2).sum(dim=-1)
        if self.c is not None and self.e is not None:
            value = value + ((d @ self.c) * b2).sum(dim=-1) + ((d2 @ self.c) * b).sum(dim=-1)
            value = value + ((b @ self.e) * b2).sum(dim=-1)
        return value

    def norm(self, tuned: Tensor, base: Tensor) -> Tensor:
        """|| W_t h_t - W_b h_b || for each row of two [..., d] tensors, in fp64."""
        b = base.double()
        d = tuned.double() - b
        return self.inner(d, b, d, b).clamp_min(0.0).sqrt()


@dataclass
class Contributions:
    """Sums over positions of what each block writes; samples weigh the same, positions within a sample too.

    Norms and signed values are sample means of position means; the direct share is a ratio of sums.
    """

    layers: int
    samples: int = 0
    tokens: int = 0
    total: dict[str, Tensor] = field(default_factory=dict)
    """By figure, [L, 2] (attention, MLP): sums of the samples' means."""
    along: Tensor | None = None
    """[2 L + 1]: projections of each block's (then the embedding's) change on the whole change."""
    whole: float = 0.0

    def add(self, figures: Mapping[str, Tensor], sample: Tensor, along: Tensor, whole: Tensor) -> None:
        """Take in values [L, 2, n] of n positions that belong to samples `sample` [n] (any integers)."""
        _, place, counts = sample.unique(return_inverse=True, return_counts=True)
        weights = 1.0 / counts[place].double()
        for name, values in figures.items():
            summed = (values * weights).sum(dim=-1).cpu()
            self.total[name] = self.total.get(name, torch.zeros_like(summed)) + summed
        self.samples += len(counts)
        self.tokens += len(sample)
        found = along.sum(dim=-1).cpu()
        self.along = found if self.along is None else self.along + found
        self.whole += float(whole.sum())

    def to_json(self) -> dict[str, object]:
        """The figures of a reading: by variant, one value per layer for attention and for MLP."""
        mean = {name: values / self.samples for name, values in self.total.items()}
        reading: dict[str, object] = {"n": self.samples, "tokens": self.tokens}
        reading.update({name: _lists(v) for name, v in mean.items() if not name.startswith("toward:")})
        shares = [None] * (2 * self.layers + 1)
        if self.along is not None and self.whole > 0:
            shares = (self.along / self.whole).tolist()
        reading["direct"] = {
            "attention": shares[: self.layers],
            "mlp": shares[self.layers : -1],
            "embedding": shares[-1],
        }
        reading["toward"] = {
            name.removeprefix("toward:"): _lists(values)
            for name, values in mean.items()
            if name.startswith("toward:")
        }
        return reading


class ResidualToLogit:
    """The probe of one model against the base; its Grams are made once, for as many positions as come."""

    def __init__(self, tuned: Head, base: Head, sets: Mapping[str, Tensor]) -> None:
        """`sets` are token ids by name. A head that is the base's own tensor is taken as unchanged."""
        self._tuned, self._base = tuned, base
        self._own = Grams.of(tuned.weight, base.weight)
        self._shared = self._own if tuned.weight is base.weight else Grams.of(base.weight, base.weight)
        self._centred = Grams.of(tuned.weight, base.weight, centred=True)
        self._toward = {
            name: (_direction(tuned.weight, i), _direction(base.weight, i)) for name, i in sets.items()
        }

    def take(self, tuned: Written, base: Written, sample: Tensor, into: Contributions) -> None:
        """Add what the blocks wrote at n positions of samples `sample` [n] to `into`."""
        layers = into.layers
        names = ("norm", "shared", "folded", *(f"toward:{name}" for name in self._toward))
        values = {
            name: torch.zeros(layers, 2, len(sample), dtype=torch.float64, device=sample.device)
            for name in names
        }
        whole_d, whole_b = self._whole(tuned, base)
        whole = self._centred.inner(whole_d, whole_b, whole_d, whole_b)
        along = torch.zeros(2 * layers + 1, len(sample), dtype=torch.float64, device=sample.device)
        for k, kind in enumerate(KINDS):
            for layer in range(layers):
                h_t, h_b = getattr(tuned, kind)[layer], getattr(base, kind)[layer]
                values["norm"][layer, k] = self._own.norm(h_t, h_b)
                values["shared"][layer, k] = self._shared.norm(h_t, h_b)
                y_t, y_b = self._fold(h_t, tuned, self._tuned), self._fold(h_b, base, self._base)
                values["folded"][layer, k] = self._own.norm(y_t, y_b)
                along[k * layers + layer] = self._centred.inner(y_t - y_b, y_b, whole_d, whole_b)
                for name, (u_t, u_b) in self._toward.items():
                    values[f"toward:{name}"][layer, k] = (y_t - y_b) @ u_t + y_b @ (u_t - u_b)
        assert tuned.embedding is not None and base.embedding is not None
        e_t = self._fold(tuned.embedding, tuned, self._tuned)
        e_b = self._fold(base.embedding, base, self._base)
        along[-1] = self._centred.inner(e_t - e_b, e_b, whole_d, whole_b)
        into.add(values, sample, along, whole)

    def _whole(self, tuned: Written, base: Written) -> tuple[Tensor, Tensor]:
        """(y_t - y_b, y_b) of the whole stream as the sum of what was written to it, behind the norm."""
        y_t, y_b = (
            self._fold(_stream(written), written, head)
            for written, head in ((tuned, self._tuned), (base, self._base))
        )
        return y_t - y_b, y_b

    @staticmethod
    def _fold(h: Tensor, written: Written, head: Head) -> Tensor:
        """The final norm applied with the stream's own scale: y = gain * h / rms(stream), fp64."""
        assert written.scale is not None
        return h.double() * written.scale[:, None] * head.gain.double()


def _stream(written: Written) -> Tensor:
    """Everything written to the stream, summed in fp64, [n, d]."""
    assert written.embedding is not None and written.attention is not None and written.mlp is not None
    return (
        written.embedding.double() + written.attention.double().sum(dim=0) + written.mlp.double().sum(dim=0)
    )


def _direction(weight: Tensor, ids: Tensor) -> Tensor:
    """Mean row of a token set less the mean row of the vocabulary, [d] in fp64."""
    return weight[ids].double().mean(dim=0) - weight.double().mean(dim=0)


def _lists(values: Tensor) -> dict[str, list[float]]:
    return {kind: values[:, k].tolist() for k, kind in enumerate(KINDS)}
