"""Gradients of several ranks made one, after the last micro-batch of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from lmm_forget.distributed.process_group import ProcessGroup

MAX_BUCKET_ELEMENTS = 1 << 25
"""Elements sent at a time: 128 MiB of fp32, large enough for full speed, small beside the model."""


def average_gradients(parameters: Sequence[nn.Parameter], process_group: ProcessGroup) -> None:
    """Replace every gradient by its mean over the ranks, in place; one that no rank has stays None.

    A rank whose batch did not touch a parameter (no pictures for the tower) counts with zeros.
    """
    if process_group.size == 1:
        return
    ranks_with_gradient = process_group.sum_over_ranks([p.grad is not None for p in parameters])
    parameters_with_gradient = [p for p, count in zip(parameters, ranks_with_gradient, strict=True) if count]
    for p in parameters_with_gradient:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    for bucket in _split_into_buckets(parameters_with_gradient):
        flat = torch.cat([p.grad.flatten() for p in bucket if p.grad is not None])
        dist.all_reduce(flat)
        flat /= process_group.size
        for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            assert p.grad is not None
            p.grad.copy_(part.view_as(p))


def _split_into_buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Consecutive parameters, together at most BUCKET elements (a larger one alone)."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for p in parameters:
        if not buckets or p.numel() > room:
            buckets.append([])
            room = MAX_BUCKET_ELEMENTS
        buckets[-1].append(p)
        room -= p.numel()
    return buckets
