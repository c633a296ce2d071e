"""Qwen2.5-VL: windowed vision transformer whose merger is the projector, Qwen2.5 decoder, ChatML prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import ProcessorMixin, Qwen2_5_VLForConditionalGeneration

from lmm_forget.models.family import Family, limit_pixels


class Qwen25VL(Family):
    """Qwen2.5-VL as in Transformers (`qwen2_5_vl`)."""

    name = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)
    hf_class = Qwen2_5_VLForConditionalGeneration
    image_limit_keys = ("min_pixels", "max_pixels")

    def iterate_processor_checks(self, config: Any, processor: Any) -> Iterator[tuple[str, Any, Any]]:
        """Sizes by which images are cut into patches and patches are merged into tokens."""
        images, vision = processor.image_processor, config.vision_config
        yield "patch_size", images.patch_size, vision.patch_size
        yield "merge_size", images.merge_size, vision.spatial_merge_size
        yield "temporal_patch_size", images.temporal_patch_size, vision.temporal_patch_size

    def apply_image_limits(self, config: Any, processor: ProcessorMixin, image_limits: Mapping[str, Any]) -> None:
        """Limit the pixels of a resized image (28 x 28 pixels become one token)."""
        limit_pixels(processor, image_limits)
