"""What an optimizer needs to know of a stage: hyper-parameters, the learning rate's course, groups of parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from lmm_forget.errors import ConfigError

if TYPE_CHECKING:
    from lmm_forget.models.components import ComponentMap

LOSS_REDUCTIONS = ("sample_mean", "token_mean")


@dataclass(frozen=True)
class OptimizerConfig:
    """Hyper-parameters of a stage as its optimizer needs them; `warmup` is a share of `steps`."""

    num_steps: int
    global_batch_size: int
    learning_rate: float
    vision_learning_rate: float | None
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float | None
    betas: tuple[float, float]
    loss_reduction: str

    @classmethod
    def from_config(cls, training_config: Mapping[str, Any], num_steps: int) -> OptimizerConfig:
        """From a resolved `training` node. Raises ConfigError for values that cannot be used."""
        loss = training_config.get("loss") or "sample_mean"
        if loss not in LOSS_REDUCTIONS:
            raise ConfigError(f"training.loss={loss}: unknown; use one of {', '.join(LOSS_REDUCTIONS)}")
        learning_rate, vision_learning_rate, max_grad_norm = (
            training_config["learning_rate"],
            training_config.get("vision_learning_rate"),
            training_config.get("max_grad_norm"),
        )
        warmup_ratio, weight_decay = (
            float(training_config.get("warmup_ratio") or 0.0),
            float(training_config.get("weight_decay") or 0.0),
        )
        for name, value in (("learning_rate", learning_rate), ("vision_learning_rate", vision_learning_rate)):
            if value is not None and not float(value) > 0:
                raise ConfigError(f"training.{name}={value}: must be above 0")
        if not 0 <= warmup_ratio <= 1:
            raise ConfigError(f"training.warmup_ratio={warmup_ratio}: is a share of the steps, between 0 and 1")
        beta1, beta2 = training_config.get("betas") or (0.9, 0.999)
        return cls(
            num_steps=num_steps,
            global_batch_size=int(training_config["global_batch_size"]),
            learning_rate=float(learning_rate),
            vision_learning_rate=None if vision_learning_rate is None else float(vision_learning_rate),
            warmup_ratio=warmup_ratio,
            weight_decay=weight_decay,
            max_grad_norm=float(max_grad_norm) if max_grad_norm else None,
            betas=(float(beta1), float(beta2)),
            loss_reduction=loss,
        )


def compute_learning_rate_factor(step: int, *, num_steps: int, warmup_ratio: float) -> float:
    """Share of the peak learning rate in optimizer step `step` (from 0): linear warm-up, then a cosine to 0.

    The warm-up takes w = ceil(warmup * steps) steps with factors 1/(w+1) ... w/(w+1), so no step is lost to a
    rate of 0; step w has factor 1, and 0 would be reached one step after the last.
    """
    warmup_steps = math.ceil(warmup_ratio * num_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))


def find_tower_parameters(model: nn.Module, components: ComponentMap) -> set[str]:
    """Names of the vision tower's parameters in `model`, a method's own inside it included.

    The projector's are not among them, also where it lies inside the tower's module (Qwen2.5-VL).
    """
    projector = {id(p) for m in components.get_modules("projector") for p in m.parameters()}
    tower = {id(p) for m in components.get_modules("vision") for p in m.parameters()} - projector
    return {name for name, p in model.named_parameters() if id(p) in tower}


def make_parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    tower_names: Collection[str],
    optimizer_config: OptimizerConfig,
) -> list[dict[str, Any]]:
    """AdamW groups: parameters named in `tower` with `vision_learning_rate` where it is set, all others with the
    main rate.
    """
    has_vision_rate = optimizer_config.vision_learning_rate is not None
    groups: dict[str, list[nn.Parameter]] = {"main": [], "vision": []}
    for name, p in named_parameters:
        groups["vision" if has_vision_rate and name in tower_names else "main"].append(p)
    rates = {"main": optimizer_config.learning_rate, "vision": optimizer_config.vision_learning_rate}
    return [{"params": found, "lr": rates[name], "name": name} for name, found in groups.items() if found]
