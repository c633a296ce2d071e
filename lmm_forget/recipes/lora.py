"""LoRA: low-rank adapters (peft) learn in the stead of linear layers and are merged into them when a stage ends.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685: W + alpha / rank * B A, with A random
and B zero at first. The stage model is an ordinary model: same modules, same names, only the adapted weights changed.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmm_forget.config.instantiation import is_number
from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.models.loading import LMM
from lmm_forget.recipes.method import (
    StageContext,
    StageOutput,
    convert_to_masters,
    extract_delta,
    parse_compat_options,
    restore_base_dtypes,
)
from lmm_forget.recipes.method_state import MethodState
from lmm_forget.recipes.plain import Plain
from lmm_forget.recipes.selection import RuleReport, SelectionRule, TunePlan

if TYPE_CHECKING:
    from peft import LoraConfig, LoraModel

ADAPTER_NAME = "stage"
"""Name of the adapter inside peft's modules; part of its parameters' names while a stage is trained."""
LORA_COMPAT_OPTIONS = ("projector",)
"""What can be had as the paper's public code does it: `projector`, it also trains the whole projector."""


class LoRA(Plain):
    """Adapters of `rank` on every linear layer that the rules select; they alone are trained, biases never.

    The update is scaled by alpha / rank in every layer. Where an adapter of that rank would hold as many elements as
    the weight it stands for (small models), its rank is lowered to in * out / (in + out) with the same scale.
    """

    is_selection_only = False
    is_rounding_only = False

    def __init__(self, rank: int = 256, alpha: float = 32, dropout: float = 0.05, compat: Collection[str] = ()) -> None:
        """Raises ConfigError for settings that cannot be used."""
        if not is_number(rank) or int(rank) != rank or rank < 1:
            raise ConfigError(f"recipe.method.rank={rank}: must be a whole number of at least 1")
        if not is_number(alpha) or not alpha > 0:
            raise ConfigError(f"recipe.method.alpha={alpha}: must be above 0")
        if not is_number(dropout) or not 0 <= dropout < 1:
            raise ConfigError(f"recipe.method.dropout={dropout}: must be from 0 to below 1")
        self.rank, self.alpha, self.dropout = int(rank), float(alpha), float(dropout)
        self.compat = parse_compat_options("LoRA", compat, LORA_COMPAT_OPTIONS)
        self._lora_model: LoraModel | None = None

    def adapt_plan(self, model: nn.Module, plan: TunePlan) -> TunePlan:
        """Of what the rules select, the weights of linear layers move; everything else stays frozen.

        Raises PlanError for a rule that names a sublayer without a linear layer, or selects no linear layer at all.
        """
        linear_layers = _find_linear_layers(model)
        rules, fully_trained = list(plan.rule_reports), set[str]()
        if "projector" in self.compat:
            rules = [report for report in rules if report.rule.component != "projector"]
            projector = [i for i in plan.parameters.values() if i.component == "projector"]
            fully_trained = {i.name for i in projector if not i.is_unused}
        rules = [self._restrict_to_linear(report, linear_layers, plan) for report in rules]
        adapted = {name for report in rules for name in report.parameter_names}
        if fully_trained:
            names = tuple(i.name for i in projector if not i.is_unused)
            num_trainable = sum(i.numel for i in projector if not i.is_unused)
            rules.append(
                RuleReport(
                    SelectionRule("projector"),
                    names,
                    num_trainable,
                    tuple(i.name for i in projector if i.is_unused),
                )
            )
        trainable = adapted | fully_trained
        return replace(
            plan,
            trainable=tuple(n for n in plan.parameters if n in trainable),
            frozen=tuple(n for n, i in plan.parameters.items() if n not in trainable and not i.is_unused),
            rule_reports=rules,
            adapters={n: self._count_adapter_elements(linear_layers[n]) for n in plan.parameters if n in adapted},
        )

    def start_stage(self, context: StageContext, lmm: LMM, train_set: Sequence[Any], state: MethodState | None) -> None:
        """Put adapters (fp32, drawn from the stage's seed) around the planned layers; they alone require a gradient."""
        from peft import LoraModel

        plan = context.plan
        linear_layers = _find_linear_layers(lmm.model)
        convert_to_masters(lmm.model, [name for name in plan.trainable if name not in plan.adapters])
        planned_layers = {_get_module_path(name): linear_layers[name] for name in plan.adapters}
        fully_trained = [p for p in lmm.model.parameters() if p.requires_grad]
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="peft")  # about tied heads and saving adapters: neither happens
            self._lora_model = LoraModel(lmm.model, self._make_lora_config(planned_layers), ADAPTER_NAME)
        lora_layers = dict(_find_lora_layers(lmm.model))
        if set(lora_layers) != set(planned_layers):
            mismatched_paths = sorted(set(lora_layers) ^ set(planned_layers))
            raise PlanError(f"recipe {plan.recipe}: peft did not adapt exactly what was planned: {mismatched_paths[0]}")
        generator = torch.Generator().manual_seed(context.seed)
        for layer in lora_layers.values():
            # peft's own start, drawn again on the CPU: it rounds to the weight's dtype, and draws where the model is.
            down, up = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
            initial_weight = nn.init.kaiming_uniform_(torch.empty(down.shape), a=math.sqrt(5), generator=generator)
            down.data, up.data = (
                initial_weight.to(down.device),
                torch.zeros_like(up.data, dtype=torch.float32),
            )
            layer.train(layer.get_base_layer().training)
        for p in fully_trained:
            p.requires_grad_(True)

    def end_stage(self, context: StageContext, lmm: LMM) -> StageOutput:
        """Merge in fp32, round once to the base dtype, and take every trace of the adapters out of the model."""
        if self._lora_model is None:
            raise PlanError(f"recipe {context.plan.recipe}: end_stage() without start_stage()")
        with torch.no_grad():
            for _, layer in _find_lora_layers(lmm.model):
                weight = layer.get_base_layer().weight
                weight.data = weight.data.float().add_(layer.get_delta_weight(ADAPTER_NAME)).to(weight.dtype)
        self._lora_model.unload()
        vars(lmm.model).pop("peft_config", None)
        self._lora_model = None
        restore_base_dtypes(lmm.model, context.base_dtypes)
        return StageOutput(extract_delta(lmm.model, context.plan.trainable) if context.keeps_delta else {})

    def _make_lora_config(self, layers: Mapping[str, nn.Linear]) -> LoraConfig:
        from peft import LoraConfig

        lowered_ranks = {name: r for name, layer in layers.items() if (r := self._choose_rank(layer)) < self.rank}
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft divides by the rank, whole or not
            lora_dropout=self.dropout,
            bias="none",
            target_modules="|".join(re.escape(name) for name in layers),
            rank_pattern={f"^{re.escape(name)}": r for name, r in lowered_ranks.items()},
            alpha_pattern={f"^{re.escape(name)}": self.alpha / self.rank * r for name, r in lowered_ranks.items()},
        )

    def _restrict_to_linear(
        self, report: RuleReport, linear_layers: Mapping[str, nn.Linear], plan: TunePlan
    ) -> RuleReport:
        names = tuple(name for name in report.parameter_names if name in linear_layers)
        adapted_sublayers = {plan.parameters[name].sublayer for name in names}
        missing_sublayers = [s for s in report.rule.sublayers or () if s not in adapted_sublayers]
        if missing_sublayers or not names:
            what = missing_sublayers[0] if missing_sublayers else "anything here"
            raise PlanError(
                f"recipe {plan.recipe}, rule [{report.rule}]: LoRA adapts linear layers, and {what} is none; "
                "leave it out, or use a recipe without adapters"
            )
        return replace(
            report,
            parameter_names=names,
            num_parameters=sum(self._count_adapter_elements(linear_layers[n]) for n in names),
        )

    def _choose_rank(self, layer: nn.Linear) -> int:
        max_rank = layer.in_features * layer.out_features // (layer.in_features + layer.out_features)
        return max(1, min(self.rank, max_rank))

    def _count_adapter_elements(self, layer: nn.Linear) -> int:
        return self._choose_rank(layer) * (layer.in_features + layer.out_features)


def _find_linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a model by the name of their weight; not those whose weight others share or read directly.

    An attention of torch's own uses the weight of its output layer without calling the layer: an adapter around it
    would never be asked.
    """
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            owners.setdefault(id(p), set()).add(id(module))
    return {
        f"{path}.weight": module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
        and len(owners[id(module.weight)]) == 1
    }


def _get_module_path(weight_name: str) -> str:
    return weight_name.removesuffix(".weight")


def _find_lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """peft's layers inside a model, with their paths."""
    from peft.tuners.lora import LoraLayer

    layers: Iterable[tuple[str, nn.Module]] = model.named_modules()
    return ((path, module) for path, module in layers if isinstance(module, LoraLayer))
