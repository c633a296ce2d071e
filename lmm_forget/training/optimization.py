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

LOSSES = ("sample_mean", "token_mean")


@dataclass(frozen=True)
class Optimization:
    """Hyper-parameters of a stage as its optimizer needs them; `warmup` is a share of `steps`."""

    steps: int
    global_batch: int
    learning_rate: float
    vision_learning_rate: float | None
    warmup: float
    weight_decay: float
    clip: float | None
    betas: tuple[float, float]
    loss: str

    @classmethod
    def from_config(cls, training: Mapping[str, Any], steps: int) -> Optimization:
        """From a resolved `training` node. Raises ConfigError for values that cannot be used."""
        loss = training.get("loss") or "sample_mean"
        if loss not in LOSSES:
            raise ConfigError(f"training.loss={loss}: unknown; use one of {', '.join(LOSSES)}")
        rate, vision, clip = (
            training["learning_rate"],
            training.get("vision_learning_rate"),
            training.get("clip"),
        )
        warmup, decay = float(training.get("warmup") or 0.0), float(training.get("weight_decay") or 0.0)
        for name, value in (("learning_rate", rate), ("vision_learning_rate", vision)):
            if value is not None and not float(value) > 0:
                raise ConfigError(f"training.{name}={value}: must be above 0")
        if not 0 <= warmup <= 1:
            raise ConfigError(f"training.warmup={warmup}: is a share of the steps, between 0 and 1")
        beta1, beta2 = training.get("betas") or (0.9, 0.999)
        return cls(
            steps=steps,
            global_batch=int(training["global_batch"]),
            learning_rate=float(rate),
            vision_learning_rate=None if vision is None else float(vision),
            warmup=warmup,
            weight_decay=decay,
            clip=float(clip) if clip else None,
            betas=(float(beta1), float(beta2)),
            loss=loss,
        )


def learning_rate_factor(step: int, *, steps: int, warmup: float) -> float:
    """Share of the peak learning rate in optimizer step `step` (from 0): linear warm-up, then a cosine to 0.

    The warm-up takes w = ceil(warmup * steps) steps with factors 1/(w+1) ... w/(w+1), so no step is lost to a
    rate of 0; step w has factor 1, and 0 would be reached one step after the last.
    """
    rise = math.ceil(warmup * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def tower_names(model: nn.Module, components: ComponentMap) -> set[str]:
    """Names of the vision tower's parameters in `model`, a method's own inside it included.

    The projector's are not among them, also where it lies inside the tower's module (Qwen2.5-VL).
    """
    projector = {id(p) for m in components.modules("projector") for p in m.parameters()}
    tower = {id(p) for m in components.modules("vision") for p in m.parameters()} - projector
    return {name for name, p in model.named_parameters() if id(p) in tower}


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], tower: Collection[str], opt: Optimization
) -> list[dict[str, Any]]:
    """AdamW groups: parameters named in `tower` with `vision_learning_rate` where it is set, all others with the
    main rate.
    """
    own_rate = opt.vision_learning_rate is not None
    groups: dict[str, list[nn.Parameter]] = {"main": [], "vision": []}
    for name, p in named:
        groups["vision" if own_rate and name in tower else "main"].append(p)
    rates = {"main": opt.learning_rate, "vision": opt.vision_learning_rate}
    return [{"params": found, "lr": rates[name], "name": name} for name, found in groups.items() if found]
