"""Finds the attention and MLP blocks of a decoder, and records their outputs in a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lmm_forget.errors import ConfigError, LmmForgetError
from lmm_forget.models.loading import LMM


@dataclass(frozen=True)
class DecoderBlocks:
    """Attention and MLP block of each decoder layer, the first layer, and the final norm in front of the head."""

    attention: tuple[nn.Module, ...]
    mlp: tuple[nn.Module, ...]
    first_layer: nn.Module
    final_norm: nn.Module

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.mlp)


@dataclass
class Activations:
    """Hidden states of a forward pass at n selected positions, on the model's device, in the model's dtype.

    `final_hidden` [n, d] is the output of the final norm. If blocks are recorded: `embedding` [n, d] is the residual
    stream before the first layer, `attention` and `mlp` [L, n, d] are what each block adds to the stream, and
    `norm_scale` [n] (fp64) is 1 / rms of the whole stream, the factor that the final norm applies.
    """

    final_hidden: Tensor
    embedding: Tensor | None = None
    attention: Tensor | None = None
    mlp: Tensor | None = None
    norm_scale: Tensor | None = None


def find_decoder_blocks(lmm: LMM) -> DecoderBlocks:
    """The blocks of `lmm`'s decoder. Raises ConfigError for a decoder of another structure.

    The attention block of a layer is the child that owns its output projection, the MLP block the one that owns
    its down projection; the final norm is the text model's own child.
    """
    names_by_id = {id(p): name for name, p in lmm.model.named_parameters()}
    sublayer_by_name = {name: lmm.components[name].sublayer for name in names_by_id.values() if name in lmm.components}

    def find_child(layer: nn.Module, sublayer: str) -> nn.Module:
        for module in layer.children():
            if any(sublayer_by_name.get(names_by_id.get(id(p), "")) == sublayer for p in module.parameters()):
                return module
        raise ConfigError(
            f"probe: {type(layer).__name__} has no block with a {sublayer}; this decoder cannot be probed"
        )

    layers = list(lmm.components.parts.language_layers)
    norms = [m for m in lmm.components.text_model.children() if type(m).__name__.endswith("RMSNorm")]
    if len(norms) != 1 or not isinstance(_get_norm_eps(norms[0]), float):
        raise ConfigError(
            f"probe: {type(lmm.components.text_model).__name__} does not end in one RMS norm; it cannot be probed"
        )
    return DecoderBlocks(
        attention=tuple(find_child(layer, "o_proj") for layer in layers),
        mlp=tuple(find_child(layer, "down_proj") for layer in layers),
        first_layer=layers[0],
        final_norm=norms[0],
    )


@dataclass
class _ActivationRecorder:
    """Records states at `positions`, (row, position) indices [n] into sequences of `sequence_length` tokens."""

    positions: tuple[Tensor, Tensor]
    sequence_length: int
    recorded: dict[str, list[Tensor]] = field(default_factory=dict)

    def record_states(self, name: str, states: Tensor) -> None:
        if states.shape[1] != self.sequence_length:
            raise LmmForgetError(
                f"probe: the decoder saw {states.shape[1]} positions for {self.sequence_length} tokens; positions of "
                "answer tokens are not known"
            )
        self.recorded.setdefault(name, []).append(states[self.positions])


@torch.no_grad()
def record_activations(
    lmm: LMM,
    blocks: DecoderBlocks,
    batch: dict[str, Tensor],
    positions: tuple[Tensor, Tensor],
    record_blocks: bool,
) -> Activations:
    """Run `batch` (input_ids [B, T], image tokens included) and record the states at `positions`.

    `positions` are row and position indices, [n] each; `record_blocks` records the blocks too. Raises LmmForgetError if
    the decoder's sequence does not have the length of input_ids.
    """
    recorder = _ActivationRecorder(positions, batch["input_ids"].shape[1])
    model: Any = lmm.model
    with _attach_recording_hooks(blocks, recorder, record_blocks):
        model.model(**batch, use_cache=False)
    final = recorder.recorded["final"][0]
    if not record_blocks:
        return Activations(final)
    stream = recorder.recorded["stream"][0].double()
    return Activations(
        final_hidden=final,
        embedding=recorder.recorded["embedding"][0],
        attention=torch.stack(recorder.recorded["attention"]),
        mlp=torch.stack(recorder.recorded["mlp"]),
        norm_scale=torch.rsqrt(stream.pow(2).mean(dim=-1) + _get_norm_eps(blocks.final_norm)),
    )


@contextmanager
def _attach_recording_hooks(
    blocks: DecoderBlocks, recorder: _ActivationRecorder, record_blocks: bool
) -> Iterator[None]:
    def make_output_hook(name: str) -> Any:
        return lambda _module, _inputs, output: recorder.record_states(
            name, output[0] if isinstance(output, tuple) else output
        )

    def make_input_hook(name: str) -> Any:
        return lambda _module, inputs, named: recorder.record_states(
            name, inputs[0] if inputs else named["hidden_states"]
        )

    handles = [blocks.final_norm.register_forward_hook(make_output_hook("final"))]
    if record_blocks:
        handles.append(blocks.final_norm.register_forward_pre_hook(make_input_hook("stream"), with_kwargs=True))
        handles.append(blocks.first_layer.register_forward_pre_hook(make_input_hook("embedding"), with_kwargs=True))
        handles += [module.register_forward_hook(make_output_hook("attention")) for module in blocks.attention]
        handles += [module.register_forward_hook(make_output_hook("mlp")) for module in blocks.mlp]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _get_norm_eps(norm: nn.Module) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
