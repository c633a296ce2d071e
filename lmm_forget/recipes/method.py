"""How planned tensors move: what every tuning method offers to the stage that runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lmm_forget.config.instantiation import instantiate_config
from lmm_forget.errors import ConfigError, PlanError

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM
    from lmm_forget.recipes.selection import TunePlan


class Method(ABC):
    """One way of moving the planned tensors of a stage.

    A stage calls `prepare`, trains everything that then requires a gradient through `loss`, and calls
    `finish`. The plan it hands over is what `planned` made of the recipe's rules.
    """

    is_selection_only: ClassVar[bool] = False
    """Whether the method is nothing but which parameters require a gradient, so that any training loop can do it."""

    is_rounding_only: ClassVar[bool] = False
    """Whether `finish` does no more with a master than to round it to the base's dtype."""

    def adapt_plan(self, model: nn.Module, plan: TunePlan) -> TunePlan:
        """The plan of this method for `model` (weights may be on the meta device), given the plan of the rules.

        Raises PlanError when the method cannot move what the rules select.
        """
        return plan

    @abstractmethod
    def start_stage(self, lmm: LMM, plan: TunePlan, seed: int = 0) -> None:
        """Make `lmm.model` trainable: exactly what moves requires a gradient and is an fp32 master.

        Everything random is drawn from `seed` (of the stage), and the global generators are left alone. What is
        trained can be found in `lmm.model.named_parameters()`, under the same names for the same stage.
        """

    @abstractmethod
    def loss(self, lmm: LMM, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Mean token cross-entropy of each sample, fp32, shape [B].

        `labels` [B, T] holds token ids at the positions that count (the answer and its end token) and -100
        elsewhere; position t is predicted by the hidden state at t - 1. Called under the stage's compute
        precision.
        """

    def on_gradients(self, step: int) -> None:  # noqa: B027
        """Called after the gradients of optimizer step `step` (from 0) are averaged over ranks, before clipping."""

    def on_step_end(self, step: int) -> None:  # noqa: B027
        """Called after optimizer step `step` (from 0) changed the weights."""

    @abstractmethod
    def end_stage(
        self, lmm: LMM, plan: TunePlan, base_dtypes: Mapping[str, torch.dtype], keep_delta: bool = True
    ) -> dict[str, Tensor]:
        """Turn `lmm.model` into the stage model and return the stage's delta.

        Afterwards every tensor is back in the base checkpoint's dtype (`base_dtypes`: parameter name to
        dtype, taken before `prepare`) and nothing requires a gradient. The delta maps planned names to their
        new values on the CPU, in the base dtype, sharing no memory with the model. Without `keep` (ranks that file
        nothing) it is left empty.
        """

    def compute_stage_tensor(self, name: str, master: Tensor, dtype: torch.dtype) -> Tensor:
        """What `finish` would make of a trained tensor if the stage ended now, in `dtype`; `master` stays as it is.

        This is what milestones and alarms look at in the middle of a stage.
        """
        return master.to(dtype)

    def get_extra_state(self) -> Iterable[Tensor]:
        """Tensors that the method keeps during a stage beside the training states;
        `TunePlan.extra_state_bytes` plans them.
        """
        return ()

    def resume_state(self) -> Mapping[str, Tensor]:
        """Tensors, by name, that a resumed stage needs beside masters and moments; every training state holds them."""
        return {}

    def load_resume_state(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take back what `resume_state` returned when the state was saved; called after `start_stage`."""


def build_method(recipe_config: Mapping[str, Any]) -> Method:
    """The method of a recipe node (plain tuning if it names none). Raises ConfigError for settings it does not take."""
    node = recipe_config.get("method") or {"_target_": "lmm_forget.recipes.plain.Plain"}
    return instantiate_config(node, Method, f"recipe {recipe_config.get('name')}: its method", ConfigError)  # type: ignore[type-abstract]


def parse_compat_options(method_name: str, options: Collection[str], known_options: Collection[str]) -> frozenset[str]:
    """The names in `compat` (behaviour of the paper's public code asked for). Raises ConfigError for unknown ones."""
    names = [options] if isinstance(options, str) else list(options)
    for name in names:
        if name not in known_options:
            raise ConfigError(
                f"recipe.method.compat: {method_name} has no {name!r}; there is: {', '.join(known_options)}"
            )
    return frozenset(names)


def find_autocast_parameters(model: nn.Module) -> frozenset[str]:
    """Names of parameters that a forward pass under autocast casts by itself, whatever dtype they are kept in.

    The weights and biases of linear layers, by autocast; the tables of embeddings, whose output is cast. Convolutions
    are not among them, nor embeddings of a class of their own: vision towers read their weight's dtype to cast pictures
    before autocast sees them, and Gemma's embeddings scale in it.
    """
    autocast_types = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear, nn.Embedding)
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            owners.setdefault(id(p), []).append(module)
    return frozenset(
        name for name, p in model.named_parameters() if all(type(owner) in autocast_types for owner in owners[id(p)])
    )


def get_parameter_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """Dtype of every parameter by name (tied ones once): what `finish` needs to find the way back."""
    return {name: p.dtype for name, p in model.named_parameters()}


def convert_to_masters(model: nn.Module, trainable_names: Iterable[str]) -> None:
    """Let exactly the parameters named in `trainable` require a gradient and hold them in fp32, in place.

    Parameter objects stay the same, so tied weights stay tied; frozen parameters keep their bits and dtype.
    Raises PlanError if a name is not a parameter of `model`.
    """
    names = set(trainable_names)
    parameters = dict(model.named_parameters())
    unknown = sorted(names - parameters.keys())
    if unknown:
        raise PlanError(
            f"the plan names {len(unknown)} tensors that {type(model).__name__} does not have: {unknown[0]}"
        )
    for name, p in parameters.items():
        p.grad = None
        p.requires_grad_(name in names)
        if name in names:
            p.data = p.data.float()


def restore_base_dtypes(model: nn.Module, base_dtypes: Mapping[str, torch.dtype]) -> None:
    """Round every parameter to its dtype in `dtypes` (nearest even), in place, and let none require a
    gradient.
    """
    for name, p in model.named_parameters():
        p.grad = None
        p.requires_grad_(False)
        if p.dtype != base_dtypes[name]:
            p.data = p.data.to(base_dtypes[name])


def extract_delta(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Copies of the named parameters on the CPU, sharing no memory with `model`."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().to("cpu", copy=True).contiguous() for name in names}
