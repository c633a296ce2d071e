"""Build model inputs from the synthetic images for a whole batch at once, as each family's processor would.

The real processors work image by image and take longer than a training step of a tiny model. All synthetic images have
the same size, so this module can build their tensors directly; tests compare them with those of the real processors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lmm_forget.tiny.canvas import SIZE


class ImageInputBuilder(ABC):
    """Builds model inputs for a batch with one image per sample.

    The prompt has `tokens_per_image` tokens with the id `image_token_id` for the image.
    """

    tokens_per_image: int

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.image_token_id: int = processor.image_token_id
        images = processor.image_processor
        self.mean = torch.tensor(images.image_mean).view(-1, 1, 1)
        self.std = torch.tensor(images.image_std).view(-1, 1, 1)

    @abstractmethod
    def build_inputs(self, pixels: Tensor, token_ids: Tensor) -> dict[str, Tensor]:
        """Inputs other than token ids and mask, from `pixels` [n, 3, SIZE, SIZE] in 0..255 and `token_ids` [n, L]."""

    def normalize_pixels(self, pixels: Tensor) -> Tensor:
        """Normalise pixels for the vision tower: [n, 3, SIZE, SIZE] fp32."""
        return (pixels.float() / 255 - self.mean) / self.std


class TiledInputBuilder(ImageInputBuilder):
    """LLaVA-OneVision and LLaVA-NeXT: the base view and one equal grid tile, then one newline per row of patches."""

    def __init__(self, processor: Any) -> None:
        super().__init__(processor)
        patch = getattr(processor, "patch_size", None)
        rows = SIZE // patch if patch else int(processor.num_image_tokens**0.5)
        self.tokens_per_image = 2 * rows * rows + rows

    def build_inputs(self, pixels: Tensor, token_ids: Tensor) -> dict[str, Tensor]:
        """`pixel_values` [n, 2, 3, SIZE, SIZE] and `image_sizes` [n, 2]."""
        tile = self.normalize_pixels(pixels)
        sizes = torch.full((len(token_ids), 2), SIZE)
        return {"pixel_values": torch.stack([tile, tile], dim=1), "image_sizes": sizes}


class PatchInputBuilder(ImageInputBuilder):
    """Qwen2.5-VL: flattened patches in the order in which the merger joins them, with their grids."""

    def __init__(self, processor: Any) -> None:
        super().__init__(processor)
        images = processor.image_processor
        self.patch_size, self.merge_size, self.temporal_patch_size = (
            images.patch_size,
            images.merge_size,
            images.temporal_patch_size,
        )
        self.patches_per_side = SIZE // self.patch_size
        self.tokens_per_image = (self.patches_per_side // self.merge_size) ** 2

    def build_inputs(self, pixels: Tensor, token_ids: Tensor) -> dict[str, Tensor]:
        """`pixel_values` [n * patches, 3 * frames * patch * patch], `image_grid_thw` [n, 3], `mm_token_type_ids`."""
        n, merged = len(pixels), self.patches_per_side // self.merge_size
        # [n, 3, merged row, row in it, y, merged column, column in it, x] -> merged rows and columns come first
        patches = self.normalize_pixels(pixels).reshape(
            n, 3, merged, self.merge_size, self.patch_size, merged, self.merge_size, self.patch_size
        )
        patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7)
        # An image is a video with equal frames.
        frames = patches.unsqueeze(6).expand(
            *patches.shape[:6], self.temporal_patch_size, self.patch_size, self.patch_size
        )
        return {
            "pixel_values": frames.reshape(n * self.patches_per_side**2, -1),
            "image_grid_thw": torch.tensor([[1, self.patches_per_side, self.patches_per_side]]).expand(n, 3),
            "mm_token_type_ids": (token_ids == self.image_token_id).long(),
        }


INPUT_BUILDERS = {
    "LlavaOnevisionProcessor": TiledInputBuilder,
    "LlavaNextProcessor": TiledInputBuilder,
    "Qwen2_5_VLProcessor": PatchInputBuilder,
}


def make_input_builder(processor: Any) -> ImageInputBuilder:
    """The input builder for the processor of a tiny LMM."""
    return INPUT_BUILDERS[type(processor).__name__](processor)
