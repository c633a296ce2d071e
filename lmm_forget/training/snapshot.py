"""Looking at a model in the middle of its training, without the training noticing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from lmm_forget.training.precision import PrecisionContext, StageTensorFunction


@contextmanager
def eval_snapshot(
    model: nn.Module,
    precision_context: PrecisionContext,
    compute_stage_tensor: StageTensorFunction | None = None,
) -> Iterator[None]:
    """Show `model` as the stage model it would be now: eval mode, the checkpoint's dtypes, no autocast.

    `compute_stage_tensor` is the method's (`PrecisionContext.paused`).
    Afterwards every random generator, every module's mode, every master and every cast is what it was, bit for
    bit, so that training goes on as if nobody had looked.
    """
    training_flags = {module: module.training for module in model.modules()}
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.no_grad(),
        precision_context.restore_checkpoint_dtypes(compute_stage_tensor),
    ):
        model.eval()
        try:
            yield
        finally:
            for module, mode in training_flags.items():
                module.training = mode
            random.setstate(states[0])
            np.random.set_state(states[1])
