"""Plain tuning: the planned tensors follow the gradient of the answers' cross-entropy, nothing else moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmm_forget.models.family import IGNORE_INDEX
from lmm_forget.models.loading import LMM
from lmm_forget.recipes.method import (
    Method,
    StageContext,
    StageOutput,
    convert_to_masters,
    extract_delta,
    restore_base_dtypes,
)
from lmm_forget.recipes.method_state import MethodState


class Plain(Method):
    """Train the planned tensors and replace them: the method of every recipe without further machinery."""

    is_selection_only = True
    is_rounding_only = True

    def start_stage(self, context: StageContext, lmm: LMM, train_set: Sequence[Any], state: MethodState | None) -> None:
        """Planned tensors become fp32 masters that require a gradient; everything else is frozen."""
        convert_to_masters(lmm.model, context.plan.trainable)

    def loss(self, lmm: LMM, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Mean token cross-entropy of each sample, [B]; see `Method.loss`."""
        return average_per_sample(compute_token_losses(lmm.model, batch, labels), labels)

    def end_stage(self, context: StageContext, lmm: LMM) -> StageOutput:
        """Round the masters to the base dtype and return all planned tensors as the delta."""
        restore_base_dtypes(lmm.model, context.base_dtypes)
        return StageOutput(extract_delta(lmm.model, context.plan.trainable) if context.keeps_delta else {})


def compute_token_losses(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy in fp32 of every labelled token, [B, T - 1]; 0 where `labels` is ignored.

    Logits are computed for labelled positions only (a vocabulary of 150k makes the others the largest tensor
    of a step); models whose class adds something behind its `lm_head` go through their own forward instead.
    """
    return compute_losses_from_logits(compute_logits_at(model, batch, make_target_mask(labels)), labels)


def compute_losses_from_logits(target_logits: Tensor, labels: Tensor) -> Tensor:
    """The same of the logits at taught positions, [positions, vocabulary]."""
    targets = labels[:, 1:]
    target_mask = targets != IGNORE_INDEX
    flat = F.cross_entropy(target_logits.float(), targets[target_mask], reduction="none")
    return flat.new_zeros(targets.shape).masked_scatter(target_mask, flat)


def make_target_mask(labels: Tensor) -> Tensor:
    """Where the next token is a labelled one: what is predicted there is taught. [B, T], the last column never."""
    target_mask = torch.zeros_like(labels, dtype=torch.bool)
    target_mask[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    return target_mask


def compute_logits_at(model: Any, batch: dict[str, Tensor], position_mask: Tensor) -> Tensor:
    """The logits at the positions that `where` [B, T] chooses, sample by sample: [positions, vocabulary]."""
    if has_plain_output_head(model):
        hidden = model.model(**batch, use_cache=False).last_hidden_state
        rows: Tensor = model.lm_head(hidden[position_mask])
        return rows
    all_logits: Tensor = model(**batch, use_cache=False).logits
    return all_logits[position_mask]


def average_per_sample(losses: Tensor, labels: Tensor) -> Tensor:
    """Mean over each sample's labelled tokens, [B, T - 1] to [B]; 0 for a sample without any."""
    count = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1)
    return losses.sum(dim=1) / count.clamp(min=1)


def has_plain_output_head(model: Any) -> bool:
    """Whether `model.lm_head(model.model(...))` are the model's logits, so that rows can be chosen in
    between.
    """
    if not hasattr(model, "model") or model.get_output_embeddings() is not getattr(model, "lm_head", None):
        return False
    text = model.config.get_text_config()
    return not any(getattr(text, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"))
