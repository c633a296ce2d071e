"""Qwen2.5-VL: windowed vision transformer whose merger is the projector, Qwen2.5 decoder, ChatML prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import PreTrainedModel, ProcessorMixin, Qwen2_5_VLForConditionalGeneration

from lmm_forget.models.components import Parts
from lmm_forget.models.family import Family


class Qwen25VL(Family):
    """Qwen2.5-VL as Transformers ships it (`qwen2_5_vl`)."""

    name = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)
    hf_class: ClassVar[type[PreTrainedModel]] = Qwen2_5_VLForConditionalGeneration
    image_keys = ("min_pixels", "max_pixels")

    def parts(self, model: PreTrainedModel) -> Parts:
        """The modules of a `Qwen2_5_VLForConditionalGeneration`; every layer of `visual` is used."""
        visual = model.model.visual
        return Parts(
            text_model=model.model.language_model,
            lm_head=model.lm_head,
            tower=visual,
            projector=visual.merger,
            language_layers=model.model.language_model.layers,
            tower_layers=visual.blocks,
        )

    def apply_image_budget(self, config: Any, processor: ProcessorMixin, image: Mapping[str, Any]) -> None:
        """Bound the pixels of a resized image (28 x 28 pixels become one token)."""
        edges = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
        size = dict(processor.image_processor.size)
        for key, value in image.items():
            size[edges[key]] = int(value)
        processor.image_processor.size = type(processor.image_processor.size)(**size)
