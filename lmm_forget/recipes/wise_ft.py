"""WiSE-FT: after a stage, every tensor that moved is averaged with what it was before the stage.

Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903. Here `alpha` is the share of the previous
stage's model (theirs is that of the tuned one, 1 - alpha), as in the paper's public code. The next stage starts from
the average, and the average is what is evaluated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lmm_forget.config.instantiation import is_number
from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.models.loading import LMM
from lmm_forget.recipes.method import StageContext, StageOutput, parse_compat_options, restore_base_dtypes
from lmm_forget.recipes.method_state import MethodState
from lmm_forget.recipes.plain import Plain
from lmm_forget.recipes.selection import TunePlan

WISE_FT_COMPAT_OPTIONS = ("rounded_sum",)
"""What can be had as the paper's public code does it: `rounded_sum`, sums in the checkpoint's dtype."""


class WiseFT(Plain):
    """Plain tuning, then previous + (1 - alpha) * (tuned - previous) in fp32, over the planned tensors only.

    The average is rounded once, to the base dtype. With alpha = 0 the stage model is that of plain tuning, with
    alpha = 1 the previous stage's model, bit for bit.
    """

    is_selection_only = False
    is_rounding_only = False

    def __init__(self, alpha: float = 0.1, compat: Collection[str] = ()) -> None:
        """Raises ConfigError for settings that cannot be used."""
        if not is_number(alpha) or not 0 <= alpha <= 1:
            raise ConfigError(f"recipe.method.alpha={alpha}: is the share of the previous stage's model, from 0 to 1")
        self.alpha = float(alpha)
        self.compat = parse_compat_options("WiseFT", compat, WISE_FT_COMPAT_OPTIONS)
        self._previous_tensors: dict[str, Tensor] = {}

    def adapt_plan(self, model: nn.Module, plan: TunePlan) -> TunePlan:
        """The rules' plan, with the memory that the previous stage's tensors take."""
        return replace(plan, extra_state_bytes=plan.delta_bytes)

    def start_stage(self, context: StageContext, lmm: LMM, train_set: Sequence[Any], state: MethodState | None) -> None:
        """Keep the planned tensors as they are (on the CPU, in their dtype), then make them masters."""
        plan, parameters = context.plan, dict(lmm.model.named_parameters())
        unknown = [name for name in plan.trainable if name not in parameters]
        if not unknown:
            self._previous_tensors = {n: parameters[n].detach().to("cpu", copy=True) for n in plan.trainable}
        super().start_stage(context, lmm, train_set, state)

    def end_stage(self, context: StageContext, lmm: LMM) -> StageOutput:
        """Average the masters with what was kept, round to the base dtype, return all planned tensors."""
        plan = context.plan
        if self._previous_tensors.keys() != set(plan.trainable):
            raise PlanError(f"recipe {plan.recipe}: end_stage() without start_stage()")
        parameters = dict(lmm.model.named_parameters())
        delta = {}
        for name in plan.trainable:
            tuned, dtype = parameters[name].detach(), context.base_dtypes[name]
            average = self._average_tensors(self._previous_tensors.pop(name).to(tuned.device), tuned, dtype)
            parameters[name].data = average
            if context.keeps_delta:
                delta[name] = average.to("cpu", copy=True).contiguous()
        restore_base_dtypes(lmm.model, context.base_dtypes)
        return StageOutput(delta)

    def compute_stage_tensor(self, name: str, master: Tensor, dtype: torch.dtype) -> Tensor:
        """The average as it would be now."""
        return self._average_tensors(self._previous_tensors[name].to(master.device), master.detach(), dtype)

    def get_extra_state(self) -> Iterable[Tensor]:
        """The previous stage's tensors."""
        return self._previous_tensors.values()

    def _average_tensors(self, previous: Tensor, tuned: Tensor, dtype: torch.dtype) -> Tensor:
        """The average of two tensors in `dtype`; the end points are returned as they are, signs of zeros included."""
        if self.alpha == 1:
            return previous.to(dtype)
        if self.alpha == 0:
            return tuned.to(dtype)
        if "rounded_sum" in self.compat:
            total = torch.zeros_like(previous, dtype=dtype)
            for share, tensor in ((self.alpha, previous), (1 - self.alpha, tuned)):
                total += share * tensor.to(dtype)
            return total
        before = previous.float()
        return (before + (1 - self.alpha) * (tuned.float() - before)).to(dtype)
