"""Elastic Weight Consolidation: a spring holds every tensor that moves, as stiff as the earlier skills need it.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", arXiv 1612.00796, with one spring for all
earlier stages: weight / 2 * sum_i F_i (theta_i - theta*_i)^2. theta* are the weights at the end of the last stage. F is
the diagonal of the Fisher information, summed over stages: at the end of each, the mean over N of its training samples
of the squared gradient of the answer's log-likelihood. The answers are the task's own ("empirical Fisher"), where the
paper draws them from the model.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lmm_forget.config.instantiation import is_number
from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.models.loading import LMM
from lmm_forget.recipes.method import StageContext, StageOutput, convert_to_masters, restore_base_dtypes
from lmm_forget.recipes.method_state import MethodState
from lmm_forget.recipes.plain import Plain, compute_token_losses
from lmm_forget.recipes.selection import TunePlan


class EWC(Plain):
    """Plain tuning with the quadratic penalty in every sample's loss, so that a global batch's mean holds it once.

    The first stage, which has nothing to hold, is plain tuning to the bit. The penalty is computed in fp32. Fisher
    samples are drawn from the stage's seed; each gets a pass of its own under the stage's compute precision, without
    dropout, on the stage model.
    """

    is_selection_only = False

    def __init__(self, weight: float = 1000.0, fisher_samples: int = 64) -> None:
        """Raises ConfigError for settings that cannot be used."""
        if not is_number(weight) or not 0 <= weight < float("inf"):
            raise ConfigError(f"recipe.method.weight={weight}: must be 0 or above (0 is plain tuning)")
        if not is_number(fisher_samples) or int(fisher_samples) != fisher_samples or fisher_samples < 1:
            raise ConfigError(f"recipe.method.fisher_samples={fisher_samples}: must be a whole number of at least 1")
        self.weight, self.fisher_samples = float(weight), int(fisher_samples)
        self._train_set: Sequence[Any] = ()
        self._previous_state: MethodState | None = None
        self._fisher: dict[str, Tensor] = {}
        self._reference: dict[str, Tensor] = {}

    def adapt_plan(self, model: nn.Module, plan: TunePlan) -> TunePlan:
        """The rules' plan, with the memory that Fisher diagonal and theta* take from the second stage on."""
        return replace(plan, extra_state_bytes=self.estimate_state_bytes(plan) + plan.delta_bytes)

    def estimate_state_bytes(self, plan: TunePlan) -> int:
        """One fp32 number for each element that moves."""
        return 4 * plan.parameter_counts["trainable"]

    def start_stage(self, context: StageContext, lmm: LMM, train_set: Sequence[Any], state: MethodState | None) -> None:
        """Keep the planned tensors as they are: the last stage ended with them. Then make them masters."""
        self._train_set, self._previous_state, self._fisher, self._reference = train_set, state, {}, {}
        if state is not None and self.weight:
            if state.tensors.keys() != set(context.plan.trainable):
                raise PlanError(f"recipe {context.plan.recipe}: the stage before moved other tensors than this one")
            parameters = dict(lmm.model.named_parameters())
            self._reference = {name: parameters[name].detach().clone() for name in context.plan.trainable}
            self._fisher = {name: state.tensors[name].to(parameters[name].device) for name in context.plan.trainable}
        super().start_stage(context, lmm, train_set, state)

    def loss(self, lmm: LMM, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Mean token cross-entropy of each sample plus the penalty, [B]."""
        sample_losses = super().loss(lmm, batch, labels)
        return sample_losses + self._compute_penalty(lmm.model) if self._fisher else sample_losses

    def end_stage(self, context: StageContext, lmm: LMM) -> StageOutput:
        """As in plain tuning; then estimate the Fisher diagonal of the stage model and add it to what was handed on."""
        output = super().end_stage(context, lmm)
        train_set, previous_state = self._train_set, self._previous_state
        self._train_set, self._previous_state, self._fisher, self._reference = (), None, {}, {}
        if not self.weight or context.discards_output:
            return output
        if not train_set:
            raise PlanError(f"recipe {context.plan.recipe}: there are no samples to estimate the Fisher diagonal from")
        indices = select_fisher_samples(len(train_set), self.fisher_samples, context.seed)
        fisher = estimate_fisher(context, lmm, [train_set[i] for i in indices])
        if previous_state is not None:
            fisher = {name: previous_state.tensors[name] + tensor.cpu() for name, tensor in fisher.items()}
        stages = [*(previous_state.values["stages"] if previous_state else []), {"samples": len(indices)}]
        return replace(output, state=MethodState(fisher, {"stages": stages}))

    def get_extra_state(self) -> Iterable[Tensor]:
        """The Fisher diagonal and theta*; nothing in the first stage."""
        return (*self._fisher.values(), *self._reference.values())

    def _compute_penalty(self, model: nn.Module) -> Tensor:
        """weight / 2 * sum_i F_i (theta_i - theta*_i)^2, a scalar in fp32."""
        whole, sharded = [], []
        for name, p in model.named_parameters():
            if name not in self._fisher:
                continue
            fisher, reference = self._fisher[name], self._reference[name]
            if isinstance(p, DTensor):  # every rank counts its own part
                fisher, reference = (_cut_like(tensor, p) for tensor in (fisher, reference))
                sharded.append(_QuadraticPenalty.apply(p.to_local(), reference, fisher))
            else:
                whole.append(_QuadraticPenalty.apply(p, reference, fisher))
        total = sum(whole, torch.zeros((), device=next(model.parameters()).device))
        if sharded:
            part = torch.stack(sharded).sum()
            everywhere = part.detach().clone()
            dist.all_reduce(everywhere)
            total = total + part + (everywhere - part.detach())  # the value of all parts, the gradient of this one
        return 0.5 * self.weight * total


class _QuadraticPenalty(torch.autograd.Function):
    """sum_i F_i (theta_i - theta*_i)^2; its gradient is computed when it is needed, so that no difference is kept."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, reference: Tensor, fisher: Tensor) -> Tensor:
        """A scalar in fp32."""
        ctx.save_for_backward(parameter, reference, fisher)
        return (fisher * (parameter.detach().float() - reference.float()).square()).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """2 F_i (theta_i - theta*_i), scaled."""
        parameter, reference, fisher = ctx.saved_tensors
        difference = parameter.detach().float() - reference.float()
        return (2 * gradient * fisher * difference).to(parameter.dtype), None, None


def _cut_like(tensor: Tensor, parameter: DTensor) -> Tensor:
    """This rank's part of a whole tensor that every rank has, cut as `parameter` is."""
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()


def select_fisher_samples(num_samples: int, count: int, seed: int) -> list[int]:
    """Indices of `count` samples (all, where there are fewer), drawn from `seed`, in ascending order."""
    return sorted(random.Random(seed).sample(range(num_samples), min(count, num_samples)))


def estimate_fisher(context: StageContext, lmm: LMM, items: Sequence[Any]) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information of every planned tensor, fp32: 1 / N sum_n (d log p(y_n | x_n))^2.

    y_n is the whole answer of item n, with its end token. The model is that of the end of the stage, and is so again
    afterwards. The ranks share the work; all get the same result.
    """
    model, process_group = lmm.model, context.process_group
    convert_to_masters(model, context.plan.trainable)
    with torch.enable_grad(), context.use_compute_precision() as autocast:
        trainable: Mapping[str, nn.Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        fisher = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in trainable.items()}
        for item in items[process_group.rank :: process_group.size]:
            encoded = lmm.family.encode_batch(
                lmm.processor, [item.question], [list(item.images)], [item.answer], [item.system]
            )
            inputs = {name: tensor.to(model.device) for name, tensor in encoded.tensors.items()}
            assert encoded.labels is not None
            with autocast():
                log_likelihood = -compute_token_losses(model, inputs, encoded.labels.to(model.device)).sum()
            log_likelihood.backward()
            for name, p in trainable.items():
                if p.grad is not None:
                    fisher[name] += p.grad.detach().float().square()
                    p.grad = None
    restore_base_dtypes(model, context.base_dtypes)
    for tensor in fisher.values():
        if process_group.size > 1:
            dist.all_reduce(tensor)
        tensor /= len(items)
    return fisher
