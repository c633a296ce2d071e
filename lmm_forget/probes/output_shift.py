"""How far a next-token distribution has moved: figures of each position, over the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 1 << 23
"""Elements of a block of logits (64 MiB in fp64)."""


def logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """`hidden` [n, d] through the unembedding `weight` [V, d] in fp32: bf16 logits would be a noise floor, [n, V]."""
    if weight.dtype == torch.float32:
        return F.linear(hidden.float(), weight)
    rows = max(1, AT_ONCE // weight.shape[1])
    return torch.cat([F.linear(hidden.float(), part.float()) for part in weight.split(rows)], dim=1)


def distribution_figures(
    scores: Tensor, sets: Mapping[str, Tensor], targets: Tensor | None = None
) -> dict[str, Tensor]:
    """Figures of the next-token distributions softmax(`scores`) [n, V], each [n] in fp64.

    `mass:<set>` is the probability of all tokens of a set together (`sets` holds their ids), `entropy` is in
    nats, `top` the likeliest token, `nll` the negative log-likelihood of `targets` [n] in nats.
    """
    logp = F.log_softmax(scores.double(), dim=-1)
    p = logp.exp()
    figures = {f"mass:{name}": p[:, ids].sum(dim=-1) for name, ids in sets.items()}
    figures["entropy"] = _entropy(p, logp)
    figures["top"] = scores.argmax(dim=-1)
    if targets is not None:
        figures["nll"] = -logp.gather(1, targets[:, None]).squeeze(1)
    return figures


def shift_figures(tuned: Tensor, base: Tensor) -> dict[str, Tensor]:
    """How far softmax(`tuned`) lies from softmax(`base`) (scores [n, V]), each [n] in fp64.

    `kl` = KL(tuned || base) and `js`, the Jensen-Shannon divergence (at most ln 2), in nats; `agreement` is 1
    where both have the same likeliest token.
    """
    logp, logq = (F.log_softmax(scores.double(), dim=-1) for scores in (tuned, base))
    p, q = logp.exp(), logq.exp()
    logm = torch.logaddexp(logp, logq) - math.log(2.0)
    kl = _divergence(p, logp, logq)
    # Where the two are one distribution, log of their mean differs from both by a rounding; that is no shift.
    same = (logp == logq).all(dim=-1)
    js = 0.5 * (_divergence(p, logp, logm) + _divergence(q, logq, logm))
    return {
        "kl": kl,
        "js": js.masked_fill(same, 0.0),
        "agreement": (tuned.argmax(dim=-1) == base.argmax(dim=-1)).double(),
    }


def row_blocks(n: int, vocabulary: int) -> Iterator[slice]:
    """Slices of n rows whose logits fit the memory bound."""
    rows = max(1, AT_ONCE // vocabulary)
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def _divergence(p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
    """Sum of p (log p - log q), not below 0; a token without probability adds nothing."""
    return torch.where(p > 0, p * (logp - logq), 0.0).sum(dim=-1).clamp_min(0.0)


def _entropy(p: Tensor, logp: Tensor) -> Tensor:
    return -torch.where(p > 0, p * logp, 0.0).sum(dim=-1)
