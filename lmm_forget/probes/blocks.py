"""The blocks of a decoder, found by module identity, and a recording of what each of them writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lmm_forget.errors import ConfigError, LmmForgetError

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM


@dataclass(frozen=True)
class Blocks:
    """Attention and MLP block of each decoder layer, the first layer, and the final norm in front of the head."""

    attention: tuple[nn.Module, ...]
    mlp: tuple[nn.Module, ...]
    first: nn.Module
    norm: nn.Module

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.mlp)


@dataclass
class Written:
    """What a forward pass wrote at n chosen positions, on the model's device, in the model's dtype.

    final [n, d] behind the final norm; and, when blocks are recorded, embedding [n, d] (the stream in front of
    the first layer), attention and mlp [L, n, d] (what each block adds to the stream), and scale [n] (fp64), the
    factor 1 / rms by which the final norm divides the stream.
    """

    final: Tensor
    embedding: Tensor | None = None
    attention: Tensor | None = None
    mlp: Tensor | None = None
    scale: Tensor | None = None


def find_blocks(lmm: LMM) -> Blocks:
    """The blocks of `lmm`'s decoder. Raises ConfigError for a decoder that is built otherwise.

    The attention block of a layer is the child that owns its output projection, the MLP block the one that owns
    its down projection; the final norm is the text model's own child.
    """
    owners = {id(p): name for name, p in lmm.model.named_parameters()}
    role = {name: lmm.components[name].sublayer for name in owners.values() if name in lmm.components}

    def child(layer: nn.Module, sublayer: str) -> nn.Module:
        for module in layer.children():
            if any(role.get(owners.get(id(p), "")) == sublayer for p in module.parameters()):
                return module
        raise ConfigError(
            f"probe: {type(layer).__name__} has no block with a {sublayer}; this decoder cannot be probed"
        )

    layers = list(lmm.components.parts.language_layers)
    norms = [m for m in lmm.components.text_model.children() if type(m).__name__.endswith("RMSNorm")]
    if len(norms) != 1 or not isinstance(_eps(norms[0]), float):
        raise ConfigError(
            f"probe: {type(lmm.components.text_model).__name__} does not end in one RMS norm; it cannot be probed"
        )
    return Blocks(
        attention=tuple(child(layer, "o_proj") for layer in layers),
        mlp=tuple(child(layer, "down_proj") for layer in layers),
        first=layers[0],
        norm=norms[0],
    )


@dataclass
class _Tape:
    """Rows taken from a pass; `at` are the (row, position) indices and `width` the length of the sequences."""

    at: tuple[Tensor, Tensor]
    width: int
    kept: dict[str, list[Tensor]] = field(default_factory=dict)

    def take(self, name: str, states: Tensor) -> None:
        if states.shape[1] != self.width:
            raise LmmForgetError(
                f"probe: the decoder saw {states.shape[1]} positions for {self.width} tokens; positions of "
                "answer tokens are not known"
            )
        self.kept.setdefault(name, []).append(states[self.at])


@torch.no_grad()
def record(
    lmm: LMM, blocks: Blocks, batch: dict[str, Tensor], at: tuple[Tensor, Tensor], deep: bool
) -> Written:
    """Run `batch` (input_ids [B, T], expanded with image tokens) and keep what was written at `at`.

    `at` are row and position indices [n]; `deep` records the blocks too. LmmForgetError when the decoder's
    sequence is not the one of `input_ids`.
    """
    tape = _Tape(at, batch["input_ids"].shape[1])
    model: Any = lmm.model
    with _hooked(blocks, tape, deep):
        model.model(**batch, use_cache=False)
    final = tape.kept["final"][0]
    if not deep:
        return Written(final)
    stream = tape.kept["stream"][0].double()
    return Written(
        final=final,
        embedding=tape.kept["embedding"][0],
        attention=torch.stack(tape.kept["attention"]),
        mlp=torch.stack(tape.kept["mlp"]),
        scale=torch.rsqrt(stream.pow(2).mean(dim=-1) + _eps(blocks.norm)),
    )


@contextmanager
def _hooked(blocks: Blocks, tape: _Tape, deep: bool) -> Iterator[None]:
    def after(name: str) -> Any:
        return lambda _module, _inputs, output: tape.take(
            name, output[0] if isinstance(output, tuple) else output
        )

    def before(name: str) -> Any:
        return lambda _module, inputs, named: tape.take(name, inputs[0] if inputs else named["hidden_states"])

    handles = [blocks.norm.register_forward_hook(after("final"))]
    if deep:
        handles.append(blocks.norm.register_forward_pre_hook(before("stream"), with_kwargs=True))
        handles.append(blocks.first.register_forward_pre_hook(before("embedding"), with_kwargs=True))
        handles += [module.register_forward_hook(after("attention")) for module in blocks.attention]
        handles += [module.register_forward_hook(after("mlp")) for module in blocks.mlp]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _eps(norm: nn.Module) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
