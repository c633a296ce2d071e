"""How far a next-token distribution has moved from the base's: metrics per position, over the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOGIT_ELEMENTS = 1 << 23
"""Largest number of elements of a block of logits (64 MiB in fp64)."""


def compute_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Logits [n, V] in fp32 of `hidden` [n, d] with the output head's `weight` [V, d].

    They are not computed in bf16, whose rounding would hide small shifts.
    """
    if weight.dtype == torch.float32:
        return F.linear(hidden.float(), weight)
    rows = max(1, MAX_LOGIT_ELEMENTS // weight.shape[1])
    return torch.cat([F.linear(hidden.float(), part.float()) for part in weight.split(rows)], dim=1)


def compute_distribution_metrics(
    logits: Tensor, token_sets: Mapping[str, Tensor], targets: Tensor | None = None
) -> dict[str, Tensor]:
    """Metrics of the next-token distributions softmax(`logits`), `logits` [n, V]; each metric is [n], in fp64.

    mass:<set> is the total probability of the tokens in a set (`token_sets` maps its name to their ids), entropy is in
    nats, top the id of the likeliest token, nll the negative log-likelihood of `targets` [n] in nats.
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
    """Distance of softmax(`tuned_logits`) from softmax(`base_logits`), both [n, V]; each metric is [n], in fp64.

    kl is KL(tuned || base), js the Jensen-Shannon divergence (at most ln 2), both in nats; agreement is 1 where both
    have the same likeliest token, else 0.
    """
    logp, logq = (F.log_softmax(logits.double(), dim=-1) for logits in (tuned_logits, base_logits))
    p, q = logp.exp(), logq.exp()
    logm = torch.logaddexp(logp, logq) - math.log(2.0)
    kl = _compute_kl_divergence(p, logp, logq)
    # Where both distributions are equal, the log of their mean differs from them by rounding; that is no shift.
    is_same = (logp == logq).all(dim=-1)
    js = 0.5 * (_compute_kl_divergence(p, logp, logm) + _compute_kl_divergence(q, logq, logm))
    return {
        "kl": kl,
        "js": js.masked_fill(is_same, 0.0),
        "agreement": (tuned_logits.argmax(dim=-1) == base_logits.argmax(dim=-1)).double(),
    }


def split_rows(num_rows: int, vocabulary_size: int) -> Iterator[slice]:
    """Slices of `num_rows` rows, each small enough that its logits have at most `MAX_LOGIT_ELEMENTS` elements."""
    rows = max(1, MAX_LOGIT_ELEMENTS // vocabulary_size)
    for start in range(0, num_rows, rows):
        yield slice(start, min(start + rows, num_rows))


def _compute_kl_divergence(p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
    """Sum of p (log p - log q), not below 0; a token without probability adds nothing."""
    return torch.where(p > 0, p * (logp - logq), 0.0).sum(dim=-1).clamp_min(0.0)


def _compute_entropy(p: Tensor, logp: Tensor) -> Tensor:
    return -torch.where(p > 0, p * logp, 0.0).sum(dim=-1)
