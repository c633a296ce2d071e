"""`hardware.micro_batch_size=auto`: the largest micro-batch that fits, found by trying the longest samples
there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lmm_forget.models.loading import LMM
from lmm_forget.recipes.method import Method, StageContext, get_parameter_dtypes
from lmm_forget.recipes.selection import TunePlan
from lmm_forget.training.micro_batches import TrainItem, to_train_item
from lmm_forget.training.stage_config import TrainStageConfig
from lmm_forget.training.train_stage import train_stage

MAX_MEASURED_SAMPLES = 256
"""Samples of every task whose length is looked at."""


def find_largest_micro_batch(
    lmm: LMM,
    plan: TunePlan,
    method: Method,
    train_sets: Sequence[Sequence[Any]],
    *,
    training_config: Mapping[str, Any],
    hardware_config: Mapping[str, Any],
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> int:
    """The micro-batch that a step on the longest samples of all `train_sets` ends with, beginning with the whole share.

    Two optimizer steps are taken, the second with everything a stage has (masters, moments, gradients); where one runs
    out of memory the micro-batch is halved, as in training. Afterwards the model is what it was, bit for bit. Raises
    LmmForgetError where a single sample does not fit.
    """
    global_batch_size = int(training_config["global_batch_size"])
    samples_per_rank = max(1, global_batch_size // process_group.size)
    items = select_longest_items(lmm, train_sets, global_batch_size)
    original_values = {
        name: p.detach().to("cpu", copy=True) for name, p in lmm.model.named_parameters() if name in set(plan.trainable)
    }
    stage_context = StageContext(
        plan,
        get_parameter_dtypes(lmm.model),
        global_batch_size=global_batch_size,
        process_group=process_group,
        discards_output=True,
    )
    method.start_stage(stage_context, lmm, items, None)
    try:
        fit_result = train_stage(
            lmm,
            plan,
            method,
            items,
            TrainStageConfig(
                task="micro-batch",
                seed=0,
                # Moments exist from the first step on: the second has them all.
                training_config={**training_config, "max_steps": 2},
                hardware_config={**hardware_config, "micro_batch_size": samples_per_rank, "num_workers": 0},
                process_group=process_group,
                phase_name="measure the micro-batch",
            ),
        )
    finally:
        method.end_stage(stage_context, lmm)
        with torch.no_grad():
            for name, p in lmm.model.named_parameters():
                if name in original_values:
                    p.copy_(original_values[name])
    return fit_result.micro_batch_size


def select_longest_items(lmm: LMM, train_sets: Sequence[Sequence[Any]], count: int) -> list[TrainItem]:
    """The `count` longest samples, in tokens, among the first ones of every task; repeated where there are fewer."""
    items_by_length: list[tuple[int, TrainItem]] = []
    for samples in train_sets:
        for i in range(min(MAX_MEASURED_SAMPLES, len(samples))):
            item = to_train_item(samples[i])
            encoded = lmm.family.encode_batch(
                lmm.processor, [item.question], [list(item.images)], [item.answer], [item.system]
            )
            items_by_length.append((int(encoded.lengths[0]), item))
    items_by_length.sort(key=lambda pair: -pair[0])
    return [items_by_length[i % len(items_by_length)][1] for i in range(count)]
