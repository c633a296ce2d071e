"""LLaVA-NeXT: CLIP tower, two-layer projector, Llama-3 decoder, Llama-3 header prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import LlavaNextForConditionalGeneration

from lmm_forget.models.family import Family, limit_tiles


class LlavaNext(Family):
    """LLaVA-NeXT (LLaVA 1.6) as in Transformers (`llava_next`)."""

    name = "llava_next"
    model_types = ("llava_next",)
    hf_class = LlavaNextForConditionalGeneration
    image_limit_keys = ("max_tiles",)
    apply_image_limits = staticmethod(limit_tiles)

    def get_vision_feature_layer(self) -> int | Sequence[int] | None:
        """`vision_feature_layer` of the configuration: a hidden state before the tower's last norm."""
        selected: int | Sequence[int] = self.config.vision_feature_layer
        return selected

    def iterate_processor_checks(self, config: Any, processor: Any) -> Iterator[tuple[str, Any, Any]]:
        """Patch size, tile size, grids of tiles, and whether the class token is kept."""
        vision = config.vision_config
        yield "patch_size", processor.patch_size, vision.patch_size
        images = processor.image_processor
        yield "tile size", images.crop_size["height"], vision.image_size
        yield (
            "image_grid_pinpoints",
            _convert_to_tuples(images.image_grid_pinpoints),
            _convert_to_tuples(config.image_grid_pinpoints),
        )
        strategy = config.vision_feature_select_strategy
        yield "vision_feature_select_strategy", processor.vision_feature_select_strategy, strategy


def _convert_to_tuples(grids: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return [tuple(grid) for grid in grids]
