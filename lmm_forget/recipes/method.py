"""How planned tensors move: what every tuning method offers to the stage that runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmm_forget.config.instantiation import instantiate_config
from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.models.loading import LMM
from lmm_forget.models.low_rank import LowRankUpdate
from lmm_forget.recipes.method_state import MethodState
from lmm_forget.recipes.selection import TunePlan

AutocastFactory = Callable[[], AbstractContextManager[Any]]
"""Makes the context of one forward pass (not of its backward pass)."""


@contextmanager
def _keep_precision() -> Iterator[AutocastFactory]:
    yield nullcontext


@dataclass(frozen=True)
class StageContext:
    """What a method is told about the stage that it serves.

    `base_dtypes` (parameter name to dtype) are those of the base checkpoint, which the stage model has again at the
    end. `index` counts the stages of a job from 1. A stage's key knows the weights it starts from, not `index`: what a
    method makes depend on earlier stages belongs into its state. `seed` is the stage's own.
    """

    plan: TunePlan
    base_dtypes: Mapping[str, torch.dtype]
    task: str = "stage"
    index: int = 1
    seed: int = 0
    global_batch_size: int = 1
    """Samples of an optimizer step, over all ranks."""
    process_group: ProcessGroup = SINGLE_PROCESS
    use_compute_precision: Callable[[], AbstractContextManager[AutocastFactory]] = _keep_precision
    """Forward passes of the method's own, before or after training: `with context.use_compute_precision() as autocast`,
    and `with autocast():` around each of them (not around a backward pass), compute as training does."""
    earlier_train_sets: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Train sets of the stages before, by task, in their order; empty unless the method `needs_earlier_data`."""
    discards_output: bool = False
    """The stage is a trial: delta and state are not used, only the model must become ordinary again at its end."""

    @property
    def keeps_delta(self) -> bool:
        """Whether this rank files the delta."""
        return self.process_group.is_rank_zero and not self.discards_output


@dataclass(frozen=True)
class StageOutput:
    """What a stage leaves: the tensors that moved (whole, or as a low-rank change), and what the next stage is handed.

    `delta` maps planned names to tensors on the CPU in the base dtype that share no memory with the model; it is empty
    on ranks that file nothing. `state` is the same on all ranks; None where the method keeps nothing.
    """

    delta: Mapping[str, Tensor | LowRankUpdate]
    state: MethodState | None = None


class Method(ABC):
    """One way of moving the planned tensors of a stage.

    A stage calls `start_stage`, trains everything that then requires a gradient through `loss`, and calls `end_stage`.
    The plan is what `adapt_plan` made of the recipe's rules. One object serves all stages of a job, and any of them may
    be taken from the store instead: what one stage needs of another goes through the state.
    """

    is_selection_only: ClassVar[bool] = False
    """Whether the method is nothing but which parameters require a gradient, so that any training loop can do it."""

    is_rounding_only: ClassVar[bool] = False
    """Whether the delta that `end_stage` returns is no more than the masters, rounded to the base's dtype."""

    needs_earlier_data: ClassVar[bool] = False
    """Whether stages see the train sets of those before them, which are then part of a stage's key."""

    def adapt_plan(self, model: nn.Module, plan: TunePlan) -> TunePlan:
        """The plan of this method for `model` (weights may be on the meta device), given the plan of the rules.

        Raises PlanError when the method cannot move what the rules select.
        """
        return plan

    def estimate_state_bytes(self, plan: TunePlan) -> int:
        """Size of the state that a stage hands on, in bytes: room that the store needs beside the delta."""
        return 0

    @abstractmethod
    def start_stage(self, context: StageContext, lmm: LMM, train_set: Sequence[Any], state: MethodState | None) -> None:
        """Make `lmm.model` trainable: exactly what moves requires a gradient and is an fp32 master.

        `train_set` holds the stage's samples (`id, question, images, answer, system`, see `training.TrainItem`),
        `state` is what the stage before handed on (None in the first one). Everything random is drawn from
        `context.seed`, and the global generators are left alone. What is trained can be found in
        `lmm.model.named_parameters()`, under the same names for the same stage.
        """

    @abstractmethod
    def loss(self, lmm: LMM, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Loss of each sample (mean token cross-entropy, and what the method adds), fp32, shape [B].

        `labels` [B, T] holds token ids at the positions that count (the answer and its end token) and -100
        elsewhere; position t is predicted by the hidden state at t - 1. Called under the stage's compute
        precision. `lmm.model` may be a copy whose trainable parameters are sharded over ranks.
        """

    def on_gradients(self, step: int) -> None:  # noqa: B027
        """Called after the gradients of optimizer step `step` (from 0) are averaged over ranks, before clipping."""

    def on_step_end(self, step: int) -> None:  # noqa: B027
        """Called after optimizer step `step` (from 0) changed the weights."""

    @abstractmethod
    def end_stage(self, context: StageContext, lmm: LMM) -> StageOutput:
        """Turn `lmm.model` into the stage model and return the stage's delta and state.

        Afterwards every tensor is back in the base checkpoint's dtype and nothing requires a gradient. All ranks call
        it; the delta stays empty on those where `context.keeps_delta` is false.
        """

    def compute_stage_tensor(self, name: str, master: Tensor, dtype: torch.dtype) -> Tensor:
        """What `end_stage` would make of a trained tensor if the stage ended now, in `dtype`; `master` stays as it is.

        This is what milestones and alarms look at in the middle of a stage.
        """
        return master.to(dtype)

    def get_extra_state(self) -> Iterable[Tensor]:
        """Tensors that the method keeps during a stage beside the training states;
        `TunePlan.extra_state_bytes` plans them.
        """
        return ()

    def resume_state(self) -> Mapping[str, Tensor]:
        """Tensors, by name, that change while a stage trains and that its saved training states must hold.

        Not those that `start_stage` makes again from weights and state at the beginning of the stage.
        """
        return {}

    def load_resume_state(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take up the tensors that `resume_state` gave; called after `start_stage`, before the first step."""


def build_method(recipe_config: Mapping[str, Any]) -> Method:
    """The method of a recipe node (plain tuning if it names none). Raises ConfigError for settings it does not take."""
    node = recipe_config.get("method") or {"_target_": "lmm_forget.recipes.plain.Plain"}
    return instantiate_config(node, Method, f"recipe {recipe_config.get('name')}: its method", ConfigError)  # type: ignore[type-abstract]


def parse_compat_options(method_name: str, options: Collection[str], known_options: Collection[str]) -> frozenset[str]:
    """The names in `options` (behaviour of the paper's public code asked for). Raises ConfigError for unknown ones."""
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
    """Dtype of every parameter by name (tied ones once): what `end_stage` goes back to."""
    return {name: p.dtype for name, p in model.named_parameters()}


def convert_to_masters(model: nn.Module, trainable_names: Iterable[str]) -> None:
    """Let exactly the parameters named in `trainable_names` require a gradient and hold them in fp32, in place.

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
    """Round every parameter to its dtype in `base_dtypes` (nearest even), in place; none requires a gradient then."""
    for name, p in model.named_parameters():
        p.grad = None
        p.requires_grad_(False)
        if p.dtype != base_dtypes[name]:
            p.data = p.data.to(base_dtypes[name])


def extract_delta(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Copies of the named parameters on the CPU, sharing no memory with `model`."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().to("cpu", copy=True).contiguous() for name in names}
