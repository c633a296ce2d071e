"""What each family's processor makes of the tiny world's pictures, computed for a whole batch at once.

The real processors work picture by picture and cost more than a training step of a tiny model. All pictures of the
world have one size, so their tensors are made here, and tests compare them with the real processors'.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lmm_forget.tiny.canvas import SIZE


class PictureInputs(ABC):
    """Model inputs for a batch of one picture per sample; `per_picture` slots of the token id `token` stand for one."""

    per_picture: int

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.token: int = processor.image_token_id
        images = processor.image_processor
        self.mean = torch.tensor(images.image_mean).view(-1, 1, 1)
        self.std = torch.tensor(images.image_std).view(-1, 1, 1)

    @abstractmethod
    def inputs(self, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """The inputs beside ids and mask: `pixels` is [n, 3, SIZE, SIZE] in 0..255, `ids` the token ids [n, L]."""

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels as the tower expects them, [n, 3, SIZE, SIZE] fp32."""
        return (pixels.float() / 255 - self.mean) / self.std


class Tiles(PictureInputs):
    """LLaVA-OneVision and LLaVA-NeXT: the base view and one equal grid tile, then one newline per row of patches."""

    def __init__(self, processor: Any) -> None:
        super().__init__(processor)
        patch = getattr(processor, "patch_size", None)
        rows = SIZE // patch if patch else int(processor.num_image_tokens**0.5)
        self.per_picture = 2 * rows * rows + rows

    def inputs(self, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """`pixel_values` [n, 2, 3, SIZE, SIZE] and `image_sizes` [n, 2]."""
        picture = self.normalised(pixels)
        sizes = torch.full((len(ids), 2), SIZE)
        return {"pixel_values": torch.stack([picture, picture], dim=1), "image_sizes": sizes}


class Patches(PictureInputs):
    """Qwen2.5-VL: flattened patches in the order in which the merger joins them, with their grids."""

    def __init__(self, processor: Any) -> None:
        super().__init__(processor)
        images = processor.image_processor
        self.patch, self.merge, self.frames = images.patch_size, images.merge_size, images.temporal_patch_size
        self.side = SIZE // self.patch
        self.per_picture = (self.side // self.merge) ** 2

    def inputs(self, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """`pixel_values` [n * patches, 3 * frames * patch * patch], `image_grid_thw` [n, 3], `mm_token_type_ids`."""
        n, merged = len(pixels), self.side // self.merge
        # [n, 3, row, row in it, y, column, column in it, x] -> rows and columns of merged patches come first
        cut = self.normalised(pixels).reshape(
            n, 3, merged, self.merge, self.patch, merged, self.merge, self.patch
        )
        cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)
        # A picture is a film whose frames are equal.
        film = cut.unsqueeze(6).expand(*cut.shape[:6], self.frames, self.patch, self.patch)
        return {
            "pixel_values": film.reshape(n * self.side**2, -1),
            "image_grid_thw": torch.tensor([[1, self.side, self.side]]).expand(n, 3),
            "mm_token_type_ids": (ids == self.token).long(),
        }


INPUTS = {"LlavaOnevisionProcessor": Tiles, "LlavaNextProcessor": Tiles, "Qwen2_5_VLProcessor": Patches}


def picture_inputs(processor: Any) -> PictureInputs:
    """The maker of picture inputs for one of the tiny LMMs' processors."""
    return INPUTS[type(processor).__name__](processor)
