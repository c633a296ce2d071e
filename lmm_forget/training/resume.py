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

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Safe(Protocol):
    """Where states are kept: `lmm_forget.store.Partial`, or anything like it."""

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Keep the state after optimizer step `step`."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest state, None if there is none."""


@dataclass(frozen=True)
class Resume:
    """How a fit is taken up: where its states are, and every how many optimizer steps one is saved."""

    safe: Safe
    every: int


@dataclass(frozen=True)
class Saved:
    """A state that was found: the optimizer steps it holds, their losses, and how they were computed.

    `exact`: nothing on the way to it cost the promise of equal bytes.
    """

    step: int
    losses: list[float]
    micro_batch: int
    layout: dict[str, Any]
    tensors: dict[str, Tensor]
    random: list[dict[str, Any]]
    exact: bool = True

    @classmethod
    def of(cls, found: tuple[dict[str, Tensor], dict[str, Any]]) -> Saved:
        """From what a Safe returns. Raises StoreError for a state of another kind."""
        tensors, state = found
        try:
            return cls(
                step=int(state["step"]),
                losses=[float(loss) for loss in state["losses"]],
                micro_batch=int(state["micro_batch"]),
                layout=dict(state["layout"]),
                tensors=tensors,
                random=[dict(one) for one in state["random"]],
                exact=bool(state.get("exact", True)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"a saved training state lacks {error}; delete the store's partial folder"
            ) from error


def layout(world_size: int, device_type: str = "cpu") -> dict[str, Any]:
    """What byte equality is promised within: the same threads, world size, torch build and processor type.

    On GPUs also their model and how many a process sees, since it is their generators that are put back.
    """
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "torch": str(torch.__version__),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device_type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "gpus_seen": torch.cuda.device_count()}
    return found


def capture(model: nn.Module, optimizer: Optimizer, keep: bool = True) -> dict[str, Tensor]:
    """Masters and moments by `master.<name>`, `exp_avg.<name>` … of every parameter that requires a gradient.

    Sharded tensors are put together one by one, by all ranks; without `keep` a rank helps and keeps none.
    """
    tensors: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        moments = optimizer.state.get(p, {})
        values = {"master": p, **{moment: moments[moment] for moment in MOMENTS if moment in moments}}
        for kind, value in values.items():
            whole = full(value)
            if keep:
                tensors[f"{kind}.{name}"] = whole.to("cpu", copy=True).contiguous()
    return tensors


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor, detached; of a sharded one all ranks must ask."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def restore_masters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the masters back, in place. Raises StoreError if they are not this model's trainable parameters."""
    moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = {name.removeprefix("master."): t for name, t in tensors.items() if name.startswith("master.")}
    odd = sorted(moving.keys() ^ kept.keys())
    if odd:
        raise StoreError(
            f"a saved training state does not fit: {odd[0]} is in only one of model and state; "
            "delete the store's partial folder"
        )
    with torch.no_grad():
        for name, p in moving.items():
            p.copy_(kept[name])


def restore_moments(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put AdamW's moments and step counts back; parameters that had none yet get none."""
    for name, p in model.named_parameters():
        if p.requires_grad and f"exp_avg.{name}" in tensors:
            optimizer.state[p] = {moment: _like(p, tensors[f"{moment}.{name}"]) for moment in MOMENTS}


def _like(p: nn.Parameter, moment: Tensor) -> Tensor:
    """A moment where its parameter is; this rank's part of it where the parameter is sharded."""
    here = moment.to(p.device, copy=True)
    if isinstance(p, DTensor) and moment.shape == p.shape:
        return distribute_tensor(here, p.device_mesh, p.placements, src_data_rank=None)
    return here


def random_states() -> dict[str, Any]:
    """States of Python's, NumPy's and torch's generators (all CUDA devices), as JSON holds them."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _text(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        states["cuda"] = [_text(state) for state in torch.cuda.get_rng_state_all()]
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put all generators back to where `random_states` found them."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_bytes(states["torch"]))
    if torch.cuda.is_available() and len(states.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_bytes(text) for text in states["cuda"]])


def _text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
