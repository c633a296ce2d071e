"""Find the parts of any image-text-to-text model from configurations, nesting and shapes of its modules.

The modules with the model's `text_config` and `vision_config` are the decoder and the vision tower; the other parts
follow from the nesting of modules. A model whose parts are not certain is refused with a list of the modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lmm_forget.errors import ConfigError
from lmm_forget.models.components import ModelParts


def map_model_parts(model: PreTrainedModel, vision_feature_layer: int | Sequence[int] | None = None) -> ModelParts:
    """The parts of a loaded model with one vision tower, one decoder and an output head.

    The projector reads the tower's hidden state `vision_feature_layer`, or several; None: the tower's last output.
    Raises ConfigError, listing the candidates, if a part is missing or could be more than one module.
    """
    names = {module: name or "the model" for name, module in model.named_modules()}
    text = _require_single_module(
        _find_modules_with_config(model, _find_text_config_key(model)), "decoder", model, names
    )
    tower = _require_single_module(
        _find_modules_with_config(model, _find_vision_config_key(model)), "vision tower", model, names
    )
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise _make_mapping_error(model, "it has no output head", [text, tower], names)
    text_config = model.config.get_text_config()
    language_layers = _find_layer_list(text, getattr(text_config, "num_hidden_layers", None), "decoder", model, names)
    tower_layers = _find_layer_list(tower, getattr(tower.config, "num_hidden_layers", None), "tower", model, names)
    between = list(_iterate_unclaimed_modules(model, (text, tower, head)))
    width = getattr(text_config, "hidden_size", None)
    projectors = between or [m for m in _list_other_children(tower, tower_layers) if _has_output_width(m, width)]
    if not projectors:
        raise _make_mapping_error(model, f"nothing in the tower ends in the decoder's width of {width}", [tower], names)
    if len(between) > 1:
        raise _make_mapping_error(model, "more than one module is between tower and decoder", between, names)
    return ModelParts(
        text_model=text,
        lm_head=head,
        tower=tower,
        projectors=tuple(projectors),
        language_layers=language_layers,
        tower_layers=tower_layers,
        unused_modules=_find_unused_modules(tower, tower_layers, projectors, vision_feature_layer),
    )


def _find_text_config_key(model: PreTrainedModel) -> str:
    text = model.config.get_text_config()
    return next((key for key in model.config.sub_configs if getattr(model.config, key, None) is text), "text_config")


def _find_vision_config_key(model: PreTrainedModel) -> str:
    """The only sub-configuration besides the decoder's. Raises ConfigError if there are several (audio) or none."""
    text = model.config.get_text_config()
    others = [k for k in model.config.sub_configs if getattr(model.config, k, None) not in (None, text)]
    if len(others) != 1:
        raise ConfigError(
            f"{type(model).__name__} cannot be mapped with certainty: beside its decoder it has "
            f"{', '.join(others) or 'no part'}, not one vision tower; a family of its own in lmm_forget/models can"
        )
    return others[0]


def _find_modules_with_config(model: PreTrainedModel, key: str) -> list[nn.Module]:
    """The outermost modules inside `model` whose configuration has the class of `model.config.<key>`."""
    config_class = type(getattr(model.config, key, None))
    matching: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, PreTrainedModel) and type(child.config) is config_class:
                matching.append(child)
            else:
                visit(child)

    visit(model)
    return matching


def _find_layer_list(
    root: nn.Module, depth: int | None, part_name: str, model: PreTrainedModel, names: dict[nn.Module, str]
) -> nn.ModuleList:
    """The module list of `depth` layers in `root`; lists inside of layers (experts) do not count."""
    lists: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                lists.append(child)
            else:
                visit(child)

    visit(root)
    fitting = [m for m in lists if isinstance(m, nn.ModuleList) and depth in (None, len(m))]
    layers = _require_single_module(fitting or lists, f"list of the {part_name}'s {depth} layers", model, names)
    assert isinstance(layers, nn.ModuleList)
    return layers


def _iterate_unclaimed_modules(model: nn.Module, claimed: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """The outermost modules with parameters that are not, do not contain and are not inside a claimed module."""
    inside = {m for part in claimed for m in part.modules()}
    for child in model.children():
        if child in inside:
            continue
        if any(m in inside for m in child.modules()):
            yield from _iterate_unclaimed_modules(child, claimed)
        elif next(child.parameters(), None) is not None:
            yield child


def _list_other_children(tower: nn.Module, layers: nn.ModuleList) -> list[nn.Module]:
    """The tower's children except the one that contains its layers."""
    return [child for child in tower.children() if layers not in child.modules()]


def _has_output_width(module: nn.Module, width: int | None) -> bool:
    """Whether the last linear layer of the module, or of each entry of a module list, has `width` outputs."""
    if isinstance(module, nn.ModuleList):
        return len(module) > 0 and all(_has_output_width(entry, width) for entry in module)
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return bool(linear) and linear[-1].out_features == width


def _find_unused_modules(
    tower: nn.Module,
    layers: nn.ModuleList,
    projectors: Sequence[nn.Module],
    vision_feature_layer: int | Sequence[int] | None,
) -> tuple[nn.Module, ...]:
    """Modules of the tower that do not affect the features which the projector reads.

    Hidden state k is the output of layer k - 1 *before* the final norm; hidden state 0 is the embeddings. So the layers
    after the last hidden state that is read, the final norm and a pooling head are unused. If the projector reads the
    tower's last output, only a pooling head is unused.
    """
    children = list(tower.children())
    holder = next(i for i, child in enumerate(children) if layers in child.modules())
    tail = [child for child in children[holder + 1 :] if child not in projectors]
    if vision_feature_layer is None:
        return tuple(child for child in tail if type(child).__name__.endswith("PoolingHead"))
    states = len(layers) + 1
    feature_layers = [vision_feature_layer] if isinstance(vision_feature_layer, int) else list(vision_feature_layer)
    last = max(k % states for k in feature_layers)
    return (*(layers[i] for i in range(last, len(layers))), *tail)


def _require_single_module(
    candidates: Sequence[nn.Module], part_name: str, model: PreTrainedModel, names: dict[nn.Module, str]
) -> Any:
    if len(candidates) != 1:
        problem = f"more than one {part_name}" if candidates else f"no {part_name}"
        raise _make_mapping_error(model, f"it has {problem}", candidates or list(model.children()), names)
    return candidates[0]


def _make_mapping_error(
    model: PreTrainedModel, reason: str, candidates: Sequence[nn.Module], names: dict[nn.Module, str]
) -> ConfigError:
    listed = ", ".join(f"{names[m]} ({type(m).__name__}, {_format_parameter_count(m)})" for m in candidates)
    return ConfigError(
        f"{type(model).__name__} cannot be mapped with certainty: {reason}; found: {listed or 'no modules'}; "
        "a family of its own in lmm_forget/models can"
    )


def _format_parameter_count(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M parameters"
