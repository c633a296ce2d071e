"""The stage model in the middle of its training, without an effect on the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lmm_forget.training.precision import PrecisionContext, StageTensorFunction
from lmm_forget.training.rng_states import preserve_rng_states


@contextmanager
def eval_snapshot(
    model: nn.Module,
    precision_context: PrecisionContext,
    compute_stage_tensor: StageTensorFunction | None = None,
) -> Iterator[None]:
    """Show `model` as the stage model it would be now: eval mode, the checkpoint's dtypes, no autocast.

    `compute_stage_tensor` is the method's (see `PrecisionContext.restore_checkpoint_dtypes`).
    Afterwards every random generator, every module's mode, every master and every cast is what it was, bit for
    bit, so that training goes on as if it had never been evaluated.
    """
    training_flags = {module: module.training for module in model.modules()}
    with (
        preserve_rng_states(),
        torch.no_grad(),
        precision_context.restore_checkpoint_dtypes(compute_stage_tensor),
    ):
        model.eval()
        try:
            yield
        finally:
            for module, mode in training_flags.items():
                module.training = mode
