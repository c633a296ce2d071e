"""Everything that the next optimizer step depends on, taken after one step and put back before the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lmm_forget.distributed.process_group import ProcessGroup
from lmm_forget.errors import StoreError
from lmm_forget.training.rng_states import RngStates

ADAM_STATE_KEYS = ("exp_avg", "exp_avg_sq", "step")


class TrainStateStore(Protocol):
    """Where states are kept: `lmm_forget.store.StageCheckpoints`, or anything like it."""

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Keep the state after optimizer step `step`."""

    def load_latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest state, None if there is none."""


@dataclass(frozen=True)
class ResumeConfig:
    """How a stage is resumed: where its states are kept, and every how many optimizer steps one is saved."""

    state_store: TrainStateStore
    every_n_steps: int


@dataclass(frozen=True)
class TrainState:
    """A saved state: the optimizer steps it holds, their losses, and how they were computed.

    `is_exact`: nothing on the way to it cost the promise of equal bytes.
    """

    step: int
    losses: list[float]
    micro_batch_size: int
    topology: dict[str, Any]
    tensors: dict[str, Tensor]
    rng_states: list[RngStates]
    is_exact: bool = True

    @classmethod
    def from_stored(cls, stored_state: tuple[dict[str, Tensor], dict[str, Any]]) -> TrainState:
        """From what a TrainStateStore returns. Raises StoreError for a state of another kind."""
        tensors, state = stored_state
        try:
            return cls(
                step=int(state["step"]),
                losses=[float(loss) for loss in state["losses"]],
                micro_batch_size=int(state["micro_batch_size"]),
                topology=dict(state["layout"]),
                tensors=tensors,
                rng_states=[RngStates.from_json(states) for states in state["random"]],
                is_exact=bool(state.get("exact", True)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"a saved training state lacks {error}; delete the store's partial folder") from error


def load_train_state(resume_config: ResumeConfig | None, process_group: ProcessGroup) -> TrainState | None:
    """The state to go on from, the same on every rank; rank 0 decides which it is and moves damaged ones aside.

    Raises StoreError where a rank does not see the state that rank 0 sees.
    """
    if resume_config is None:
        return None

    def load_latest() -> TrainState | None:
        stored_state = resume_config.state_store.load_latest()
        return TrainState.from_stored(stored_state) if stored_state else None

    if process_group.size == 1:
        return load_latest()
    first_rank_state = [load_latest()] if process_group.is_rank_zero else [None]
    step = process_group.broadcast_from_rank_zero(lambda: first_rank_state[0].step if first_rank_state[0] else None)
    if step is None:
        return None
    local_state = first_rank_state[0] or load_latest()
    if process_group.is_true_on_any_rank(local_state is None or local_state.step != step):
        raise StoreError(
            f"the state saved after step {step} is not seen by every rank; the store must lie on a file system that "
            "all machines of a job share"
        )
    return local_state


def describe_topology(world_size: int, device_type: str = "cpu") -> dict[str, Any]:
    """What byte equality is promised within: the same threads, world size, torch build and processor type.

    On GPUs also their model and how many a process sees, since it is their generators that are put back.
    """
    topology: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "torch": str(torch.__version__),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device_type == "cuda":
        topology |= {"gpu": torch.cuda.get_device_name(), "gpus_seen": torch.cuda.device_count()}
    return topology


def collect_train_tensors(model: nn.Module, optimizer: Optimizer, is_writer: bool = True) -> dict[str, Tensor]:
    """Masters and moments by `master.<name>`, `exp_avg.<name>` … of every parameter that requires a gradient.

    Sharded tensors are gathered one by one, by all ranks; one that is no writer takes part and keeps none.
    """
    tensors: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        moments = optimizer.state.get(p, {})
        values = {"master": p, **{moment: moments[moment] for moment in ADAM_STATE_KEYS if moment in moments}}
        for kind, value in values.items():
            full_value = gather_full_tensor(value)
            if is_writer:
                tensors[f"{kind}.{name}"] = full_value.to("cpu", copy=True).contiguous()
    return tensors


def gather_full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor, detached; of a sharded one all ranks must ask."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def restore_masters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the masters back, in place. Raises StoreError if they are not this model's trainable parameters."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    saved_masters = {name.removeprefix("master."): t for name, t in tensors.items() if name.startswith("master.")}
    mismatched_names = sorted(trainable.keys() ^ saved_masters.keys())
    if mismatched_names:
        raise StoreError(
            f"a saved training state does not fit: {mismatched_names[0]} is in only one of model and state; "
            "delete the store's partial folder"
        )
    with torch.no_grad():
        for name, p in trainable.items():
            p.copy_(saved_masters[name])


def add_method_tensors(tensors: dict[str, Tensor], method_tensors: Mapping[str, Tensor]) -> None:
    """Add what a method keeps within a stage to the tensors of a training state, as `method.<name>`."""
    for name, tensor in method_tensors.items():
        tensors[f"method.{name}"] = tensor.detach().to("cpu", copy=True).contiguous()


def get_method_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `add_method_tensors` added."""
    return {name.removeprefix("method."): t for name, t in tensors.items() if name.startswith("method.")}


def restore_moments(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put AdamW's moments and step counts back; parameters that had none yet get none."""
    for name, p in model.named_parameters():
        if p.requires_grad and f"exp_avg.{name}" in tensors:
            optimizer.state[p] = {
                moment: _match_placement(p, tensors[f"{moment}.{name}"]) for moment in ADAM_STATE_KEYS
            }


def _match_placement(parameter: nn.Parameter, moment: Tensor) -> Tensor:
    """A moment where its parameter is; this rank's part of it where the parameter is sharded."""
    local_moment = moment.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor) and moment.shape == parameter.shape:
        return distribute_tensor(local_moment, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return local_moment
