"""Learning without Forgetting: while a stage learns, it is held to what the model before the stage would have said.

Li and Hoiem, "Learning without Forgetting", arXiv 1606.09282, with the distillation of Hinton et al., arXiv 1503.02531:
cross-entropy + weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)), on the new skill's own samples. The
teacher is the model at the beginning of the stage; nothing of an older skill is seen again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmm_forget.config.instantiation import is_number
from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.models.loading import LMM
from lmm_forget.recipes.method import StageContext, StageOutput, find_autocast_parameters
from lmm_forget.recipes.method_state import MethodState
from lmm_forget.recipes.plain import (
    Plain,
    average_per_sample,
    compute_logits_at,
    compute_losses_from_logits,
    make_target_mask,
)
from lmm_forget.recipes.selection import TunePlan

POSITION_CHOICES = ("sequence", "answer")
"""Where the student is held: at positions spread over picture, prompt and answer, or where tokens are taught."""
MAX_POSITIONS = 1000
POSITION_SHARE = 0.2


class LwF(Plain):
    """Plain tuning with a second loss: the teacher's distribution over the vocabulary at some positions.

    `positions="sequence"` is what the paper's public code computes (`spread`), `"answer"` what it asks its model for
    and never gets.

    The teacher is no second model. The planned tensors of the stage's beginning are kept in their dtype and put in
    place of the masters for a pass without gradients, before the student's own; so the teacher computes exactly as the
    student did before its first step. Its pass draws no random numbers.
    """

    is_selection_only = False

    def __init__(self, weight: float = 1.0, temperature: float = 2.0, positions: str = "sequence") -> None:
        """Raises ConfigError for settings that cannot be used."""
        if not is_number(weight) or not 0 <= weight < float("inf"):
            raise ConfigError(f"recipe.method.weight={weight}: must be 0 or above (0 is plain tuning)")
        if not is_number(temperature) or not 0 < temperature < float("inf"):
            raise ConfigError(f"recipe.method.temperature={temperature}: must be above 0")
        self.weight, self.temperature = float(weight), float(temperature)
        if positions not in POSITION_CHOICES:
            raise ConfigError(
                f"recipe.method.positions={positions} is not known; choose one of: {', '.join(POSITION_CHOICES)}"
            )
        self.positions = positions
        self._teacher_tensors: dict[str, Tensor] = {}
        self._teacher_model: Any = None
        self._autocast_names: frozenset[str] = frozenset()

    def adapt_plan(self, model: nn.Module, plan: TunePlan) -> TunePlan:
        """The rules' plan, with the memory that the teacher's tensors take."""
        return replace(plan, extra_state_bytes=plan.delta_bytes)

    def start_stage(self, context: StageContext, lmm: LMM, train_set: Sequence[Any], state: MethodState | None) -> None:
        """Keep the planned tensors as they are, in their dtype, then make them masters."""
        plan, parameters = context.plan, dict(lmm.model.named_parameters())
        if all(name in parameters for name in plan.trainable):
            self._teacher_tensors = {name: parameters[name].detach().clone() for name in plan.trainable}
        super().start_stage(context, lmm, train_set, state)
        # The model itself, also where a sharded copy of it is trained: that one exists in parts.
        self._teacher_model, self._autocast_names = lmm.model, find_autocast_parameters(lmm.model)

    def loss(self, lmm: LMM, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Mean over each sample's taught tokens, plus that of the second loss over its positions, [B]."""
        if not self.weight:
            return super().loss(lmm, batch, labels)
        if self._teacher_model is None:
            raise PlanError("LwF: loss() without start_stage()")
        target_mask = make_target_mask(labels)
        distilled_mask = target_mask if self.positions == "answer" else select_spread_positions(batch["attention_mask"])
        teacher_logits = self._compute_teacher_logits(batch, distilled_mask)
        needed_mask = target_mask | distilled_mask
        logits = compute_logits_at(lmm.model, batch, needed_mask).float()
        distillation_losses = compute_distillation_losses(
            teacher_logits.float(), logits[distilled_mask[needed_mask]], self.temperature
        )
        task_losses = average_per_sample(compute_losses_from_logits(logits[target_mask[needed_mask]], labels), labels)
        return task_losses + self.weight * _average_per_row(distillation_losses, distilled_mask)

    def end_stage(self, context: StageContext, lmm: LMM) -> StageOutput:
        """Let the teacher go; then as in plain tuning."""
        self._teacher_tensors, self._teacher_model = {}, None
        return super().end_stage(context, lmm)

    def get_extra_state(self) -> Iterable[Tensor]:
        """The teacher's tensors."""
        return self._teacher_tensors.values()

    def _compute_teacher_logits(self, batch: dict[str, Tensor], position_mask: Tensor) -> Tensor:
        """The teacher's logits at the chosen positions."""
        device_type = position_mask.device.type
        # Autocast would keep the teacher's weights under the names of the student's, and give them to the student.
        autocast = torch.autocast(
            device_type,
            dtype=torch.get_autocast_dtype(device_type),
            enabled=torch.is_autocast_enabled(device_type),
            cache_enabled=False,
        )
        with torch.no_grad(), autocast, self._use_teacher_weights():
            return compute_logits_at(self._teacher_model, batch, position_mask)

    @contextmanager
    def _use_teacher_weights(self) -> Iterator[None]:
        """The model as it was before the stage, without dropout, for the block."""
        model = cast(nn.Module, self._teacher_model)
        parameters = dict(model.named_parameters())
        masters = {name: parameters[name].data for name in self._teacher_tensors}
        training_modules = [module for module in model.modules() if module.training]
        try:
            for name, teacher_tensor in self._teacher_tensors.items():
                p = parameters[name]
                self._teacher_tensors[name] = teacher_tensor = teacher_tensor.to(p.device)
                keeps_dtype = name in self._autocast_names and torch.is_autocast_enabled(p.device.type)
                p.data = teacher_tensor if keeps_dtype else teacher_tensor.to(p.dtype)
            model.eval()
            yield
        finally:
            for name, master in masters.items():
                parameters[name].data = master
            for module in training_modules:
                module.training = True


def compute_distillation_losses(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)) in nats, of each row of two [n, V]; T^2 keeps the size
    of its gradient where T changes.
    """
    teacher_log_probs, student_log_probs = (
        (logits / temperature).log_softmax(dim=-1) for logits in (teacher_logits, student_logits)
    )
    return (
        F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True).sum(dim=-1) * temperature**2
    )


def select_spread_positions(attention_mask: Tensor) -> Tensor:
    """Positions as the paper's public code takes them, for each sample: a fifth of the sequence, 1000 at most; two
    fifths of them at its beginning, two fifths at its end, the rest at equal distances between. [B, T], True where.

    That code halves them once more where its memory is short, and counts the padding of a batch (it trains on
    batches of one sample, which have none).
    """
    position_mask = torch.zeros_like(attention_mask, dtype=torch.bool)
    for row, real in enumerate(attention_mask.bool()):
        real_positions = real.nonzero().flatten()
        num_real = len(real_positions)
        num_selected = max(1, min(int(POSITION_SHARE * num_real), MAX_POSITIONS)) if num_real else 0
        num_each_end = int(0.4 * num_selected)
        rest = torch.arange(num_selected - 2 * num_each_end, device=real_positions.device)
        between = num_each_end + rest * (num_real - 2 * num_each_end) // max(1, len(rest))
        selected = torch.cat(
            [
                real_positions[:num_each_end],
                real_positions[between],
                real_positions[num_real - num_each_end :],
            ]
        )
        position_mask[row, selected] = True
    return position_mask


def _average_per_row(values: Tensor, position_mask: Tensor) -> Tensor:
    """Mean of `values`, one for each True of `where` [B, T], over each row: [B]; 0 for a row without any."""
    sums = values.new_zeros(position_mask.shape).masked_scatter(position_mask, values).sum(dim=1)
    return sums / position_mask.sum(dim=1).clamp(min=1)
