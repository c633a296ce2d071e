"""Map every parameter of a multimodal model to its component and sublayer, by module identity.

Substrings of parameter names are not reliable: `self_attn.q_proj` is also in the SigLIP and CLIP towers,
`mlp.gate_proj` is also in Qwen2.5-VL's vision blocks, and Qwen2.5-VL's projector (the merger) is inside the module
`visual`. Therefore a family passes the modules themselves (`ModelParts`), and every parameter is looked up in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from lmm_forget.errors import ConfigError

COMPONENTS = ("vision", "projector", "language", "other")
"""Every parameter belongs to exactly one. `other` (the learned `image_newline`) is frozen in every recipe."""


@dataclass(frozen=True)
class ModelParts:
    """The modules that a family recognises in a loaded model.

    `projectors` may be inside `tower`; their parameters then count as projector only. `unused_modules` do not affect
    the logits, so they never get a gradient.
    """

    text_model: nn.Module
    lm_head: nn.Module
    tower: nn.Module
    projectors: tuple[nn.Module, ...]
    language_layers: nn.ModuleList
    tower_layers: nn.ModuleList
    unused_modules: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter: its place in the model and its size.

    `sublayer` is the role inside its component (`q_proj`, `gate_proj`, `norm`, `embedding`, `lm_head`, ...), `layer` is
    the index of the decoder or tower layer (None outside of the layers), `numel` the number of elements.
    """

    name: str
    component: str
    sublayer: str
    layer: int | None
    shape: tuple[int, ...]
    numel: int
    dtype: torch.dtype
    is_unused: bool

    @property
    def size_in_bytes(self) -> int:
        """Size in bytes, in the parameter's dtype."""
        return self.numel * self.dtype.itemsize


class ComponentMap:
    """The component, sublayer and layer of every parameter of a model, in the order of `named_parameters`.

    Parameters that share storage (a tied `lm_head`) appear once, under their first name.
    """

    def __init__(self, model: nn.Module, parts: ModelParts) -> None:
        """Map `model`. Raises ConfigError if vision, projector or language has no parameters in it."""
        self.parts = parts
        self._info: dict[str, ParameterInfo] = {}
        component = _map_parameters_to_components(parts)
        layer = {
            id(p): i
            for stack in (parts.language_layers, parts.tower_layers)
            for i, block in enumerate(stack)
            for p in block.parameters()
        }
        unused = {id(p) for module in parts.unused_modules for p in module.parameters()}
        sublayer = _map_parameters_to_sublayers(model, parts)
        for name, p in model.named_parameters():
            self._info[name] = ParameterInfo(
                name=name,
                component=component.get(id(p), "other"),
                sublayer=sublayer[id(p)],
                layer=layer.get(id(p)),
                shape=tuple(p.shape),
                numel=p.numel(),
                dtype=p.dtype,
                is_unused=id(p) in unused,
            )
        present = {info.component for info in self}
        missing = [c for c in COMPONENTS[:3] if c not in present]
        if missing:
            raise ConfigError(f"{type(model).__name__}: no parameters found for {', '.join(missing)}")

    def __iter__(self) -> Iterator[ParameterInfo]:
        return iter(self._info.values())

    def __len__(self) -> int:
        return len(self._info)

    def __getitem__(self, name: str) -> ParameterInfo:
        return self._info[name]

    def __contains__(self, name: object) -> bool:
        return name in self._info

    @property
    def text_model(self) -> nn.Module:
        """The decoder without its output head."""
        return self.parts.text_model

    @property
    def num_language_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.parts.language_layers)

    @property
    def num_tower_layers(self) -> int:
        """Number of layers of the vision tower, including unused ones."""
        return len(self.parts.tower_layers)

    def count_layers(self, component: str) -> int:
        """Number of layers of `component`; 0 if it has none."""
        return {"language": self.num_language_layers, "vision": self.num_tower_layers}.get(component, 0)

    def list_sublayers(self, component: str) -> tuple[str, ...]:
        """The sublayers of `component` that have used parameters, in model order."""
        return tuple(dict.fromkeys(i.sublayer for i in self if i.component == component and not i.is_unused))

    def get_modules(self, component: str) -> tuple[nn.Module, ...]:
        """The modules of a component (for Qwen2.5-VL the vision module also contains the projector)."""
        return {
            "vision": (self.parts.tower,),
            "projector": self.parts.projectors,
            "language": (self.parts.text_model, self.parts.lm_head),
            "other": (),
        }[component]


def _map_parameters_to_components(parts: ModelParts) -> dict[int, str]:
    """Parameter id -> component. The projector comes first, because it may be inside the tower."""
    component_by_parameter: dict[int, str] = {}
    for name, module in (
        *(("projector", module) for module in parts.projectors),
        ("vision", parts.tower),
        ("language", parts.text_model),
        ("language", parts.lm_head),
    ):
        for p in module.parameters():
            component_by_parameter.setdefault(id(p), name)
    return component_by_parameter


def _map_parameters_to_sublayers(model: nn.Module, parts: ModelParts) -> dict[int, str]:
    """Parameter id -> sublayer, from the module that owns the parameter."""
    sublayer_by_parameter: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False):
            sublayer_by_parameter.setdefault(id(p), _get_sublayer_name(module, path.rpartition(".")[2], name, parts))
    return sublayer_by_parameter


def _get_sublayer_name(module: nn.Module, attribute: str, parameter: str, parts: ModelParts) -> str:
    """The role of a parameter, from its owning module and that module's attribute name in its parent."""
    if module is parts.lm_head:
        return "lm_head"
    if type(module).__name__.endswith("Norm"):
        return attribute if attribute in ("q_norm", "k_norm") else "norm"
    if isinstance(module, (nn.Embedding, nn.Conv2d, nn.Conv3d)) or parameter.endswith("embedding"):
        return "embedding"
    if isinstance(module, nn.Linear):
        return "linear" if attribute.isdigit() else attribute
    return "other"
