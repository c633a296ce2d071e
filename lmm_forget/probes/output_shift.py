"""How far a next-token distribution has moved: figures of each position, over the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOGIT_ELEMENTS = 1 << 23
"""Elements of a block of logits (64 MiB in fp64)."""


def compute_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """`hidden` [n, d] through the unembedding `weight` [V, d] in fp32: bf16 logits would be a noise floor, [n, V]."""
    if weight.dtype == torch.float32:
        return F.linear(hidden.float(), weight)
    rows = max(1, MAX_LOGIT_ELEMENTS // weight.shape[1])
    return torch.cat([F.linear(hidden.float(), part.float()) for part in weight.split(rows)], dim=1)


def compute_distribution_metrics(
    logits: Tensor, token_sets: Mapping[str, Tensor], targets: Tensor | None = None
) -> dict[str, Tensor]:
    """Figures of the next-token distributions softmax(`scores`) [n, V], each [n] in fp64.

    `mass:<set>` is the probability of all tokens of a set together (`sets` holds their ids), `entropy` is in
    nats, `top` the likeliest token, `nll` the negative log-likelihood of `targets` [n] in nats.
    """
    logp = F.log_softmax(logits.double(), dim=-1)
    p = logp.exp()
    metrics = {f"mass:{name}": p[:, ids].sum(dim=-1) for name, ids in token_sets.items()}
    metrics["entropy"] = _compute_entropy(p, logp)
    metrics["top"] = logits.argmax(dim=-1)
    if targets is not None:
        metrics["nll"] = -logp.gather(1, targets[:, None]).squeeze(1)
    return metrics


def compute_shift_metrics(tuned_logits: Tensor, base_logits: Tensor) -> dict[str, Tensor]:
    """How far softmax(`tuned`) lies from softmax(`base`) (scores [n, V]), each [n] in fp64.

    `kl` = KL(tuned || base) and `js`, the Jensen-Shannon divergence (at most ln 2), in nats; `agreement` is 1
    where both have the same likeliest token.
    """
    logp, logq = (F.log_softmax(scores.double(), dim=-1) for scores in (tuned_logits, base_logits))
    p, q = logp.exp(), logq.exp()
    logm = torch.logaddexp(logp, logq) - math.log(2.0)
    kl = _compute_kl_divergence(p, logp, logq)
    # Where the two are one distribution, log of their mean differs from both by a rounding; that is no shift.
    is_same = (logp == logq).all(dim=-1)
    js = 0.5 * (_compute_kl_divergence(p, logp, logm) + _compute_kl_divergence(q, logq, logm))
    return {
        "kl": kl,
        "js": js.masked_fill(is_same, 0.0),
        "agreement": (tuned_logits.argmax(dim=-1) == base_logits.argmax(dim=-1)).double(),
    }


def split_rows(num_rows: int, vocabulary_size: int) -> Iterator[slice]:
    """Slices of n rows whose logits fit the memory bound."""
    rows = max(1, MAX_LOGIT_ELEMENTS // vocabulary_size)
    for start in range(0, num_rows, rows):
        yield slice(start, min(start + rows, num_rows))


def _compute_kl_divergence(p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
    """Sum of p (log p - log q), not below 0; a token without probability adds nothing."""
    return torch.where(p > 0, p * (logp - logq), 0.0).sum(dim=-1).clamp_min(0.0)


def _compute_entropy(p: Tensor, logp: Tensor) -> Tensor:
    return -torch.where(p > 0, p * logp, 0.0).sum(dim=-1)
