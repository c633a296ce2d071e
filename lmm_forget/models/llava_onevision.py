"""LLaVA-OneVision: SigLIP tower, two-layer projector, Qwen2 decoder, ChatML prompts."""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedModel

from lmm_forget.models.components import Parts
from lmm_forget.models.family import Family, dead_ends, limit_tiles


class LlavaOnevision(Family):
    """LLaVA-OneVision as Transformers ships it (`llava_onevision`)."""

    name = "llava_onevision"
    model_types = ("llava_onevision",)
    hf_class: ClassVar[type[PreTrainedModel]] = LlavaOnevisionForConditionalGeneration
    image_keys = ("max_tiles",)
    apply_image_budget = staticmethod(limit_tiles)

    def parts(self, model: PreTrainedModel) -> Parts:
        """The modules of a `LlavaOnevisionForConditionalGeneration`."""
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
