"""Everything that the next optimizer step depends on, taken after one step and put back before the next."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lmm_forget.errors import StoreError

ADAM_STATE_KEYS = ("exp_avg", "exp_avg_sq", "step")


class TrainStateStore(Protocol):
    """Where states are kept: `lmm_forget.store.StageCheckpoints`, or anything like it."""

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Keep the state after optimizer step `step`."""

    def load_latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest state, None if there is none."""


@dataclass(frozen=True)
class ResumeConfig:
    """How a fit is taken up: where its states are, and every how many optimizer steps one is saved."""

    state_store: TrainStateStore
    every_n_steps: int


@dataclass(frozen=True)
class TrainState:
    """A state that was found: the optimizer steps it holds, their losses, and how they were computed.

    `exact`: nothing on the way to it cost the promise of equal bytes.
    """

    step: int
    losses: list[float]
    micro_batch_size: int
    topology: dict[str, Any]
    tensors: dict[str, Tensor]
    rng_states: list[dict[str, Any]]
    is_exact: bool = True

    @classmethod
    def from_stored(cls, stored_state: tuple[dict[str, Tensor], dict[str, Any]]) -> TrainState:
        """From what a Safe returns. Raises StoreError for a state of another kind."""
        tensors, state = stored_state
        try:
            return cls(
                step=int(state["step"]),
                losses=[float(loss) for loss in state["losses"]],
                micro_batch_size=int(state["micro_batch_size"]),
                topology=dict(state["layout"]),
                tensors=tensors,
                rng_states=[dict(one) for one in state["random"]],
                is_exact=bool(state.get("exact", True)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"a saved training state lacks {error}; delete the store's partial folder") from error


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

    Sharded tensors are put together one by one, by all ranks; without `keep` a rank helps and keeps none.
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


def serialize_rng_states() -> dict[str, Any]:
    """States of Python's, NumPy's and torch's generators (all CUDA devices), as JSON holds them."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _encode_base64(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        states["cuda"] = [_encode_base64(state) for state in torch.cuda.get_rng_state_all()]
    return states


def restore_serialized_rng_states(states: Mapping[str, Any]) -> None:
    """Put all generators back to where `serialize_rng_states` found them."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_decode_base64(states["torch"]))
    if torch.cuda.is_available() and len(states.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_decode_base64(text) for text in states["cuda"]])


def _encode_base64(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _decode_base64(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
