"""Pictures as they come: every model takes files of every mode and shape, and says which one it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lmm_forget.errors import DataError
from lmm_forget.tasks.images import read_image
from tests.models.subjects import SUBJECTS, subject
from tests.models.tiny import picture

ODD_SIZES = ((1, 1), (3, 1), (1, 3), (3, 3), (8000, 50), (50, 8000), (57, 55))


def odd_files(folder: Path) -> dict[str, Path]:
    """Files that are not plain 8-bit RGB, all of which show a 40 x 20 picture."""
    plain = picture(40, 20, seed=5)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown rotated clockwise
    deep = Image.fromarray(torch.arange(800, dtype=torch.int32).reshape(20, 40).numpy().astype("uint16") * 80)
    palette, glass = plain.quantize(16), plain.copy()
    glass.putalpha(100)
    made = {
        "palette": (palette, {}),
        "transparent palette": (palette, {"transparency": 3}),
        "alpha": (glass, {}),
        "16 bits": (deep, {}),
        "turned": (plain.transpose(Image.Transpose.ROTATE_90), {"exif": turned}),
        "grey": (plain.convert("L"), {}),
    }
    for name, (image, options) in made.items():
        image.save(folder / f"{name}.png", **options)
    return {name: folder / f"{name}.png" for name in made}


@pytest.mark.parametrize("name", SUBJECTS)
def test_files_of_every_mode_are_pictures_to_every_model(name: str, tmp_path: Path) -> None:
    lmm, files = subject(name), odd_files(tmp_path)
    pictures = [read_image(path) for path in files.values()]
    assert {p.size for p in pictures} == {(40, 20)}, "turned upright"
    batch = lmm.family.encode_batch(lmm.processor, ["?"] * len(pictures), [[p] for p in pictures]).tensors
    with torch.inference_mode():
        logits = lmm.model(**batch).logits[:, -1]
    assert torch.isfinite(logits).all()
    assert len({tuple(row.tolist()) for row in logits}) == len(pictures), "each looks different"


@pytest.mark.parametrize("name", SUBJECTS)
def test_pictures_of_extreme_shape(name: str) -> None:
    lmm = subject(name)
    for size in ODD_SIZES:
        encoded = lmm.family.encode_batch(lmm.processor, ["?"], [[picture(*size)]], ["yes"])
        assert torch.isfinite(lmm.model(**encoded.tensors, labels=encoded.labels).loss), size
        assert encoded.lengths[0] < 256, size
    pictures = [[picture(*size)] for size in ODD_SIZES]
    together = lmm.family.encode_batch(lmm.processor, ["?"] * len(pictures), pictures)
    with torch.inference_mode():
        assert torch.isfinite(lmm.model(**together.tensors).logits).all()


@pytest.mark.parametrize("name", SUBJECTS)
def test_three_pixels_are_not_taken_for_three_channels(name: str) -> None:
    """A red picture of 3 x 3 or 1 x 1 pixels looks as red as a large one."""
    lmm = subject(name)
    seen = []
    for size in (1, 3, 56):
        batch = lmm.family.encode_batch(lmm.processor, ["?"], [[Image.new("RGB", (size, size), (255, 0, 0))]]).tensors
        seen.append(torch.unique(batch["pixel_values"].round(decimals=3)).tolist())
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) >= 2


def test_what_a_processor_cannot_take_is_named() -> None:
    lmm = subject("qwen2_5_vl")
    pictures = [[picture()], [picture(8000, 30)]]
    with pytest.raises(
        DataError, match=r"sample 1 of the batch: Qwen2_5_VLProcessor cannot take it \(8000 x 30 pixels\)"
    ):
        lmm.family.encode_batch(lmm.processor, ["a", "b"], pictures)


@pytest.mark.parametrize("mode", ["P", "RGBA", "I;16", "L"])
def test_pictures_that_nobody_converted_are_refused(mode: str) -> None:
    lmm = subject("llava_next")
    with pytest.raises(DataError, match=f"sample 1 of the batch: an image of 4 x 5 pixels in mode {mode}; images have"):
        lmm.family.encode_batch(lmm.processor, ["a", "b"], [[picture()], [Image.new(mode, (4, 5))]])
