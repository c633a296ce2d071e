"""`hardware.micro_batch=auto`: the largest micro-batch that fits, found by trying the longest samples there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lmm_forget.distributed.process_group import ALONE, Ranks
from lmm_forget.recipes.method import parameter_dtypes
from lmm_forget.training.batches import TrainItem, as_item
from lmm_forget.training.fit import fit

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM
    from lmm_forget.recipes.method import Method
    from lmm_forget.recipes.selection import TunePlan

LOOKED_AT = 256
"""Samples of every task whose length is looked at."""


def largest_that_fits(
    lmm: LMM,
    plan: TunePlan,
    method: Method,
    tasks: Sequence[Sequence[Any]],
    *,
    training: Mapping[str, Any],
    hardware: Mapping[str, Any],
    ranks: Ranks = ALONE,
) -> int:
    """The micro-batch that a step on the longest samples of all `tasks` ends with, beginning with the whole share.

    Two optimizer steps are taken, the second with everything a stage has (masters, moments, gradients); where one runs
    out of memory the micro-batch is halved, as in training. Afterwards the model is what it was, bit for bit. Raises
    LmmForgetError where a single sample does not fit.
    """
    batch = int(training["global_batch"])
    share = max(1, batch // ranks.size)
    items = longest(lmm, tasks, batch)
    before = {
        name: p.detach().to("cpu", copy=True)
        for name, p in lmm.model.named_parameters()
        if name in set(plan.trainable)
    }
    dtypes = parameter_dtypes(lmm.model)
    method.prepare(lmm, plan)
    try:
        fitted = fit(
            lmm,
            plan,
            method,
            items,
            training={
                **training,
                "max_steps": 2,
            },  # moments exist from the first step on: the second has them all
            hardware={**hardware, "micro_batch": share, "workers": 0},
            seed=0,
            task="micro-batch",
            phase="measure the micro-batch",
            ranks=ranks,
        )
    finally:
        method.finish(lmm, plan, dtypes, keep=False)
        with torch.no_grad():
            for name, p in lmm.model.named_parameters():
                if name in before:
                    p.copy_(before[name])
    return fitted.micro_batch


def longest(lmm: LMM, tasks: Sequence[Sequence[Any]], number: int) -> list[TrainItem]:
    """The `number` longest samples, in tokens, among the first ones of every task; repeated where there are fewer."""
    found: list[tuple[int, TrainItem]] = []
    for samples in tasks:
        for i in range(min(LOOKED_AT, len(samples))):
            item = as_item(samples[i])
            encoded = lmm.family.encode(
                lmm.processor, [item.question], [list(item.images)], [item.answer], [item.system]
            )
            found.append((int(encoded.lengths[0]), item))
    found.sort(key=lambda pair: -pair[0])
    return [found[i % len(found)][1] for i in range(number)]
