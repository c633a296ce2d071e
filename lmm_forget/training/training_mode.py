"""What is set in a model for as long as it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lmm_forget.errors import ConfigError
from lmm_forget.models.loading import LMM


@contextmanager
def set_training_mode(lmm: LMM, use_activation_checkpointing: bool) -> Iterator[None]:
    """Put what gradients pass through into training mode, keep wholly frozen towers and projectors
    deterministic.

    The decoder always lies on the gradients' way. Activations are recomputed without re-entering autograd
    where asked for. Afterwards the whole model is in eval mode.
    """
    model: Any = lmm.model
    model.eval()
    lmm.components.text_model.train()
    model.get_output_embeddings().train()
    for component in ("vision", "projector"):
        for module in lmm.components.get_modules(component):
            module.train(_has_trainable_parameter(module))
    if use_activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        if use_activation_checkpointing:
            model.gradient_checkpointing_disable()
        model.eval()


@contextmanager
def override_attention_dropout(lmm: LMM, dropout_rate: float | None) -> Iterator[None]:
    """Drop `share` of the decoder's attention weights in the block; None leaves the checkpoint's own setting.

    Raises ConfigError for a decoder whose attention has no such setting.
    """
    blocks: list[Any] = [m for m in lmm.components.text_model.modules() if hasattr(m, "attention_dropout")]
    if dropout_rate is None:
        yield
        return
    if not blocks:
        raise ConfigError(f"training.attention_dropout={dropout_rate}: this model's attention has no dropout; use null")
    original_rates = [block.attention_dropout for block in blocks]
    for block in blocks:
        block.attention_dropout = dropout_rate
    try:
        yield
    finally:
        for block, original_rate in zip(blocks, original_rates, strict=True):
            block.attention_dropout = original_rate


def _has_trainable_parameter(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())
