"""The family of any image-text-to-text model of Transformers that has no family of its own.

`part_detection.map_model_parts` maps the modules without a forward pass. On the loaded model the map is then checked:
the autograd graph shows which parameters of tower and projector affect the decoder's inputs. If the two disagree, the
model is refused with a list of the modules, and needs a family of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lmm_forget.errors import ConfigError
from lmm_forget.models.chat import find_answer_prefix
from lmm_forget.models.components import ComponentMap
from lmm_forget.models.family import Family, limit_pixels


def is_image_text_to_text(model_type: str | None) -> bool:
    """Whether Transformers' AutoModelForImageTextToText knows the model type."""
    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


class GenericFamily(Family):
    """Maps the parts of any model type; refuses models that it cannot map with certainty."""

    name = "generic"
    model_types = ()
    image_limit_keys = ("min_pixels", "max_pixels", "max_tiles")

    def __init__(self, config: Any) -> None:
        """Raises ConfigError for encoder-decoder models."""
        if getattr(config, "is_encoder_decoder", False):
            raise ConfigError(
                f"model type {config.model_type!r} is not supported: it has an encoder and a decoder of text"
            )
        self.config = config
        self.context_length = int(getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)
        self.hf_class = AutoModelForImageTextToText._model_mapping[type(config)]

    def get_vision_feature_layer(self) -> int | Sequence[int] | None:
        """`vision_feature_layer` if the configuration has one; -1 means the tower's last output."""
        selected: int | Sequence[int] | None = getattr(self.config, "vision_feature_layer", None)
        return None if selected == -1 else selected

    def get_answer_prefix(self, processor: ProcessorMixin) -> str:
        """The space that some templates write after the assistant header."""
        return find_answer_prefix(processor)

    def apply_image_limits(self, config: Any, processor: ProcessorMixin, image_limits: Mapping[str, Any]) -> None:
        """Set `max_tiles` if the image processor cuts tiles, and pixel limits if it merges patches as Qwen's does.

        Raises ConfigError for a limit that this processor does not have.
        """
        images: Any = processor.image_processor
        pixels = {key: value for key, value in image_limits.items() if key != "max_tiles"}
        supported = {"max_tiles": hasattr(images, "max_patches"), "pixels": hasattr(images, "merge_size")}
        if ("max_tiles" in image_limits and not supported["max_tiles"]) or (pixels and not supported["pixels"]):
            raise ConfigError(
                f"model.image.{next(iter(image_limits))}: {type(images).__name__} has no such bound; leave it out"
            )
        if "max_tiles" in image_limits:
            images.max_patches = int(image_limits["max_tiles"])
        if pixels:
            limit_pixels(processor, pixels)

    def verify_components(self, model: PreTrainedModel, processor: ProcessorMixin, components: ComponentMap) -> None:
        """Raise ConfigError if the autograd graph of the decoder's inputs contradicts the map; see the module."""
        image = Image.linear_gradient("L").convert("RGB").resize((64, 48))
        batch = self.encode_batch(processor, ["?"], [[image]]).tensors
        upstream_ids = _find_parameters_before_decoder(model, components.text_model, batch)
        mismatched = [
            info.name
            for info in components
            if info.component in ("vision", "projector")
            and (id(model.get_parameter(info.name)) in upstream_ids) == info.is_unused
        ]
        if mismatched:
            raise ConfigError(
                f"{type(model).__name__} cannot be mapped with certainty: whether images reach the decoder through "
                f"{len(mismatched)} of its tensors "
                f"({', '.join(mismatched[:3])}{', …' if len(mismatched) > 3 else ''}) cannot be "
                "told from its modules; found: "
                f"{', '.join(_iterate_component_descriptions(model, components))}; a family of its own in "
                "lmm_forget/models can"
            )


class _DecoderReached(Exception):
    """Stops the forward pass at the decoder; carries the decoder's inputs."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.tensors = tensors


def _find_parameters_before_decoder(
    model: PreTrainedModel, text_model: nn.Module, batch: dict[str, Tensor]
) -> set[int]:
    """Ids of all parameters that affect the decoder's inputs; the decoder itself does not run.

    No activations are saved, because the graph is only traversed. Raises ConfigError if the model cannot process its
    processor's output.
    """

    def stop_at_decoder(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _DecoderReached(list(_iterate_tensors([args, kwargs])))

    flags = [(p, p.requires_grad) for p in model.parameters()]
    handle = text_model.register_forward_pre_hook(stop_at_decoder, with_kwargs=True)
    try:
        for p, _ in flags:
            p.requires_grad_(p.is_floating_point())
        moved = {
            key: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
            for key, value in batch.items()
        }
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_discard_tensor, _discard_tensor):
            model(**moved, use_cache=False)
    except _DecoderReached as reached:
        return _find_leaf_ids(reached.tensors)
    except (ValueError, RuntimeError, TypeError) as error:
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise ConfigError(f"{type(model).__name__} cannot take what its processor makes of an image: {cause}") from None
    finally:
        handle.remove()
        for p, flag in flags:
            p.requires_grad_(flag)
    raise ConfigError(
        f"{type(model).__name__} never calls {type(text_model).__name__}, which was taken for its decoder"
    )


def _discard_tensor(_tensor: Any) -> Any:
    return None


def _iterate_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _iterate_tensors(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _iterate_tensors(entry)


def _find_leaf_ids(tensors: Sequence[Tensor]) -> set[int]:
    """Ids of the leaf tensors of an autograd graph."""
    leaf_ids, visited = set(), set()
    pending = [t.grad_fn for t in tensors if t.grad_fn is not None]
    while pending:
        node = pending.pop()
        if node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            leaf_ids.add(id(node.variable))
        pending += [following for following, _ in node.next_functions if following is not None]
    return leaf_ids


def _iterate_component_descriptions(model: PreTrainedModel, components: ComponentMap) -> Iterator[str]:
    names = {module: name for name, module in model.named_modules()}
    for part_name, modules in (
        ("decoder", (components.text_model,)),
        ("tower", components.get_modules("vision")),
        ("projector", components.get_modules("projector")),
    ):
        for module in modules:
            yield f"{part_name} {names[module]} ({type(module).__name__})"
