"""Pictures of every mode come out as the same 8-bit RGB; broken files are named with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmm_forget.errors import DataError
from lmm_forget.tasks.images import read_image

RED, WHITE, GREY = (255, 0, 0), (255, 255, 255), (128, 128, 128)


def saved(image: Image.Image, folder: Path, name: str = "x.png", **options: object) -> Image.Image:
    image.save(folder / name, **options)
    read = read_image(folder / name)
    assert read.mode == "RGB"
    return read


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", RED, RED),
        ("L", 128, GREY),
        ("1", 1, WHITE),
        ("RGBA", (*RED, 255), RED),
        ("RGBA", (*RED, 0), WHITE),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), WHITE),
    ],
)
def test_modes(tmp_path: Path, mode: str, color: object, expected: tuple[int, ...]) -> None:
    image = Image.new(mode, (3, 2), color)  # type: ignore[arg-type]
    assert saved(image, tmp_path).getpixel((1, 1)) == expected


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert [saved(image, tmp_path).getpixel((x, 0)) for x in (0, 1)] == [RED, (0, 255, 0)]
    clear = saved(image, tmp_path, transparency=1)
    assert [clear.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 128 * 257, 65535]], dtype=np.uint16)
    read = saved(Image.fromarray(levels), tmp_path)
    assert [read.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), GREY, WHITE]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    assert saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), tmp_path, "x.jpg").getpixel((4, 4)) == WHITE


def test_exif_orientation_turns_the_picture_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), WHITE)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated clockwise
    read = saved(image, tmp_path, exif=exif)
    assert read.size == (2, 4)
    assert read.getpixel((1, 0)) == RED


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=r"x\.tiff has floating point pixels"):
        read_image(tmp_path / "x.tiff")


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "is missing"), (b"", "empty file"), (b"hello", "not an image file")]
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_image(tmp_path / "x.png")


def test_a_truncated_file_is_unreadable(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"x\.png cannot be read \(.*truncated"):
        read_image(tmp_path / "x.png")
