"""LLaVA-NeXT: CLIP tower, two-layer projector, Llama-3 decoder, Llama-3 header prompts."""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from transformers import LlavaNextForConditionalGeneration, PreTrainedModel

from lmm_forget.models.components import Parts
from lmm_forget.models.family import Family, dead_ends, limit_tiles


class LlavaNext(Family):
    """LLaVA-NeXT (LLaVA 1.6) as Transformers ships it (`llava_next`)."""

    name = "llava_next"
    model_types = ("llava_next",)
    hf_class: ClassVar[type[PreTrainedModel]] = LlavaNextForConditionalGeneration
    image_keys = ("max_tiles",)
    apply_image_budget = staticmethod(limit_tiles)

    def parts(self, model: PreTrainedModel) -> Parts:
        """The modules of a `LlavaNextForConditionalGeneration`."""
        inner = model.model
        tower = inner.vision_tower
        layers: nn.ModuleList = tower.encoder.layers
        return Parts(
            text_model=inner.language_model,
            lm_head=model.lm_head,
            tower=tower,
            projector=inner.multi_modal_projector,
            language_layers=inner.language_model.layers,
            tower_layers=layers,
            unused=dead_ends(tower, layers, model.config.vision_feature_layer),
        )
