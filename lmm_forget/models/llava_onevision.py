"""LLaVA-OneVision: SigLIP tower, two-layer projector, Qwen2 decoder, ChatML prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import LlavaOnevisionForConditionalGeneration

from lmm_forget.models.family import Family, limit_tiles


class LlavaOnevision(Family):
    """LLaVA-OneVision as in Transformers (`llava_onevision`)."""

    name = "llava_onevision"
    model_types = ("llava_onevision",)
    hf_class = LlavaOnevisionForConditionalGeneration
    image_limit_keys = ("max_tiles",)
    apply_image_limits = staticmethod(limit_tiles)

    def get_vision_feature_layer(self) -> int | Sequence[int] | None:
        """`vision_feature_layer` of the configuration: a hidden state before the tower's last norm."""
        selected: int | Sequence[int] = self.config.vision_feature_layer
        return selected

    def iterate_processor_checks(self, config: Any, processor: Any) -> Iterator[tuple[str, Any, Any]]:
        """Tokens per tile, tile size, grids of tiles, and whether the class token is kept."""
        vision = config.vision_config
        yield "num_image_tokens", processor.num_image_tokens, (vision.image_size // vision.patch_size) ** 2
        images = processor.image_processor
        yield "tile size", images.size["height"], vision.image_size
        yield (
            "image_grid_pinpoints",
            _convert_to_tuples(images.image_grid_pinpoints),
            _convert_to_tuples(config.image_grid_pinpoints),
        )
        strategy = config.vision_feature_select_strategy
        yield "vision_feature_select_strategy", processor.vision_feature_select_strategy, strategy


def _convert_to_tuples(grids: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return [tuple(grid) for grid in grids]
