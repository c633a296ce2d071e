"""Image files as the RGB pictures that models are shown."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from lmm_forget.errors import DataError

VERSION = 1
"""Of the conversion below; part of a task's fingerprint, raised when pixels change."""

_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")


def read_image(path: Path) -> Image.Image:
    """Read an image file as 8-bit RGB, upright (EXIF), transparent parts on white, 16 bits scaled to 8.

    Of an animation it is the first frame. Raises DataError with the reason if the file is missing or
    unreadable.
    """
    try:
        return _read(path)
    except FileNotFoundError:
        raise DataError(f"image {path} is missing") from None
    except DataError as error:
        raise DataError(f"image {path} {error}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        empty = path.is_file() and path.stat().st_size == 0
        raise DataError(f"image {path} cannot be read ({_reason(error, empty)})") from None


def decode_image(content: bytes) -> Image.Image:
    """The picture in an image file's bytes, as `read_image` gives it. Raises DataError with the reason."""
    try:
        return _read(io.BytesIO(content))
    except DataError as error:
        raise DataError(f"image {error}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"image cannot be read ({_reason(error, not content)})") from None


def picture_size(source: Path | bytes) -> tuple[int, int]:
    """Width and height of a picture as it will be read (upright), from its header. DataError with the reason."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            width, height = opened.size
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in _ON_ITS_SIDE
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        where = "image" if isinstance(source, bytes) else f"image {source}"
        raise DataError(f"{where} cannot be read ({_reason(error, not source)})") from None
    return (height, width) if turned else (width, height)


def _read(file: Path | io.BytesIO) -> Image.Image:
    with Image.open(file) as opened:
        opened.load()
        return to_rgb(ImageOps.exif_transpose(opened))


def to_rgb(image: Image.Image) -> Image.Image:
    """The same picture in mode RGB. Raises DataError for floating point pixels, whose range is unknown."""
    if image.mode.startswith("I"):  # 16-bit greys; some readers widen them to 32 bits
        levels = np.asarray(image).astype(np.int64)
        scaled = (levels.clip(0, 65535) + 128) // 257 if image.mode != "I" or levels.max() > 255 else levels
        return Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError("has floating point pixels; save it with 8 or 16 bits per channel")
    if image.mode in _ALPHA or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception, empty: bool) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "empty file" if empty else "not an image file"
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
