"""Open images (files, bytes, data URLs) and convert them to RGB; no other module opens images."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import ExifTags, Image

from lmm_forget.errors import DataError, shorten_value

IMAGE_FORMAT_VERSION = 1
"""Version of the conversion below, part of a task's fingerprint; raised when pixels change."""
ImageSource = Path | bytes | str
"""Where an image is stored: a file, its bytes, or a URL as it was written (only `data:` URLs are read)."""
INSPECTION_CHUNK_SIZE = 256
"""How many images `inspect_images` queues at a time."""

_EXIF_TRANSPOSES = {  # EXIF orientation -> transposition that makes the stored image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ROTATED_ORIENTATIONS = (5, 6, 7, 8)  # orientations that exchange width and height
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
_URL = re.compile(r"data:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DATA_URL = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),(.*)", re.IGNORECASE | re.DOTALL)
_BASE64 = re.compile(r"/(?:iVBOR|9j/|R0lGOD|UklGR)[A-Za-z0-9+/=]{40,}$")  # how PNG, JPEG, GIF and WebP begin
_URL_SAFE_ALPHABET = bytes.maketrans(b"-_", b"+/")  # the alphabet of base64 in URLs, and the usual one
_EMPTY_HASH = hashlib.sha256().hexdigest()

# Pillow's warnings and log lines do not help users: an image can be read, or it is a bad sample.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _silence_libtiff() -> None:
    """Stop libtiff, by which Pillow reads TIFF files, from writing to stderr; Pillow raises its errors anyway.

    Called once on import. The handlers hold for the whole process, so for all threads. Only Linux tells which library
    is loaded.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            loaded = {line.split(maxsplit=5)[5].strip() for line in maps if "/libtiff" in line}
        for path in loaded:
            library = ctypes.CDLL(path)
            for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                handler(None)
    except (OSError, AttributeError):  # another system, or a library without these functions: its messages stay
        return


_silence_libtiff()


@dataclass(frozen=True)
class ImageInspection:
    """The result of opening an image: hashes (SHA-256, hex), or the `reason` why it cannot be read.

    `content_hash` is of the file's bytes, `pixel_hash` of the decoded RGB image (see `hash_pixels`).
    """

    content_hash: str | None
    pixel_hash: str | None
    reason: str | None = None


def parse_image_source(name: str, root: Path) -> ImageSource:
    """The source that a name in a data file stands for: a URL, or a file, below `root` unless it is absolute.

    Blanks around a URL are removed. A blank name becomes "", which `read_image` refuses as empty.
    """
    if not name.strip():
        return ""
    return name.strip() if _URL.match(name.strip()) else Path(os.path.abspath(root / name))


def get_image_name(source: ImageSource, root: Path) -> str:
    """A short name for an image: its path relative to `root`, or a hash of the bytes or the URL."""
    if isinstance(source, Path):
        return Path(os.path.relpath(source, root)).as_posix()
    raw = source if isinstance(source, bytes) else source.encode()
    return f"sha256-{hashlib.sha256(raw).hexdigest()[:16]}"


def read_image(source: ImageSource) -> Image.Image:
    """Read an image as 8-bit RGB, upright (EXIF), transparent parts on white, 16 bits scaled to 8.

    Of an animation the first frame is read. Raises DataError, one short line with the reason, if the image is missing
    or cannot be read for any reason.
    """
    with _open_image(source) as opened:
        return _decode_upright_rgb(opened)


def read_image_size(source: ImageSource) -> tuple[int, int]:
    """Width and height in pixels of the upright image, from its header. Raises DataError as `read_image` does."""
    with _open_image(source) as opened:
        width, height = opened.size
        return (height, width) if _read_orientation(opened) in _ROTATED_ORIENTATIONS else (width, height)


def hash_image_file(source: ImageSource) -> str | None:
    """SHA-256 (hex) of an image's stored bytes; None if they cannot be read."""
    try:
        with _open_stream(source) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except Exception:  # `read_image` reports the reason
        return None


def hash_pixels(image: Image.Image) -> str:
    """SHA-256 (hex) of a decoded image: mode, size and pixels."""
    if image.mode == "P":  # the pixels of a palette image are indices into the palette
        image = image.convert("RGBA")
    digest = hashlib.sha256(f"{image.mode}{image.size}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def inspect_images(
    sources: Iterable[ImageSource], known_pixels: dict[str, str] | None = None
) -> dict[ImageSource, ImageInspection]:
    """Open every image once, in parallel threads; of files with equal bytes only the first is decoded.

    `known_pixels` (content hash -> pixel hash) is read and extended, so that a later call can reuse it.
    """
    known_pixels = {} if known_pixels is None else known_pixels

    def inspect_image(source: ImageSource) -> ImageInspection:
        content_hash = hash_image_file(source)
        if content_hash in known_pixels:
            return ImageInspection(content_hash, known_pixels[content_hash])
        try:
            pixel_hash = hash_pixels(read_image(source))
        except DataError as error:
            return ImageInspection(content_hash, None, str(error))
        if content_hash is not None:
            known_pixels[content_hash] = pixel_hash
        return ImageInspection(content_hash, pixel_hash)

    inspections: dict[ImageSource, ImageInspection] = {}
    pending = iter(dict.fromkeys(sources))
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(pending, INSPECTION_CHUNK_SIZE)):
            inspections.update(zip(chunk, pool.map(inspect_image, chunk), strict=True))
    return inspections


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to mode RGB. Raises DataError for floating point pixels, whose range is unknown."""
    if image.mode.startswith("I"):  # 16-bit greys; some readers widen them to 32 bits
        levels = np.asarray(image).astype(np.int64)
        scaled = (levels.clip(0, 65535) + 128) // 257 if image.mode != "I" or levels.max() > 255 else levels
        return Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError("has floating point pixels; save it with 8 or 16 bits per channel")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        foreground = image.convert("RGBA")
        white = Image.new("RGBA", foreground.size, "white")
        return Image.alpha_composite(white, foreground).convert("RGB")
    return image.convert("RGB")


def _decode_upright_rgb(opened: Image.Image) -> Image.Image:
    opened.load()
    if 0 in opened.size:
        raise DataError(f"has no pixels ({opened.width} x {opened.height})")
    transpose = _EXIF_TRANSPOSES.get(_read_orientation(opened))
    return convert_to_rgb(opened if transpose is None else opened.transpose(transpose))


def _read_orientation(opened: Image.Image) -> int:
    orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if isinstance(orientation, int) else 1


@contextmanager
def _open_image(source: ImageSource) -> Iterator[Image.Image]:
    """Open an image for a `with` block. Every exception, also of the block, becomes a DataError.

    On damaged bytes Pillow's readers raise many types: OSError, SyntaxError, struct.error, KeyError, OverflowError,
    MemoryError and more.
    """
    description = "image" if isinstance(source, bytes) or source == "" else f"image {_describe_source(source)}"
    try:
        with _open_stream(source) as file, Image.open(file) as opened:
            yield opened
    except FileNotFoundError:
        raise DataError(f"{description} is missing{_suggest_fix(source)}") from None
    except DataError as error:
        raise DataError(f"{description} {error}") from None
    except Exception as error:
        raise DataError(
            f"{description} cannot be read ({_describe_error(error, source)}){_suggest_fix(source)}"
        ) from None


def _open_stream(source: ImageSource) -> io.BytesIO | io.BufferedReader:
    """Open an image's bytes for reading. Raises OSError, or DataError whose message lacks the image's name."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, str):
        return io.BytesIO(_decode_data_url(source))
    if source.exists() and not source.is_file():  # reading a pipe may block, a device never ends
        raise DataError("is not a file" if not source.is_dir() else "is a folder")
    return open(source, "rb")


def _decode_data_url(url: str) -> bytes:
    """The content of a `data:` URL. As in browsers, base64 may lack padding and may use the URL-safe alphabet.

    Raises DataError for other URLs and for malformed ones.
    """
    url = url.strip()
    if not url:
        raise DataError("is empty")
    scheme = url[: url.index(":")].lower()
    if scheme != "data":
        if scheme == "file":
            raise DataError("is a URL; give the file's path")
        raise DataError("is a link, and nothing is downloaded; store the image and give the file's path")
    match = _DATA_URL.fullmatch(url)
    if match is None:
        raise DataError("is no data URL; it looks like data:image/png;base64,…")
    mime_type, options, payload = match[1].strip().lower(), match[2].lower().split(";"), match[3]
    if not mime_type.startswith("image/"):
        raise DataError(f"holds {shorten_value(mime_type) or 'text'}, not an image/…")
    content = unquote_to_bytes(payload)
    if "base64" not in (option.strip() for option in options):
        return content
    try:
        characters = re.sub(rb"\s+", b"", content).translate(_URL_SAFE_ALPHABET)
        padded = characters if b"=" in characters else characters + b"=" * (-len(characters) % 4)
        return base64.b64decode(padded, validate=True)
    except ValueError as error:
        raise DataError(f"is not valid base64 ({shorten_value(error)})") from None


def _describe_source(source: Path | str) -> str:
    if isinstance(source, Path):
        return shorten_value(source, 240)
    head = source[:48] + "…" if len(source) > 48 and source[:5].lower() == "data:" else shorten_value(source, 120)
    return f"{shorten_value(head)} ({len(source):,} characters)" if head.endswith("…") else head


def _suggest_fix(source: ImageSource) -> str:
    """A hint for a missing path that looks like base64; else empty."""
    if isinstance(source, Path) and _BASE64.search(str(source)):
        return "; if it is the image in base64, write data:image/png;base64, in front"
    return ""


def _describe_error(error: Exception, source: ImageSource) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image file" if hash_image_file(source) != _EMPTY_HASH else "empty file"
    if isinstance(error, OSError) and error.strerror:
        return shorten_value(error.strerror)  # without the path, which the line has
    message = shorten_value(error, 120)
    if not message:
        return type(error).__name__
    is_plain = isinstance(error, OSError | ValueError | SyntaxError | Image.DecompressionBombError)
    return message if is_plain else f"{type(error).__name__}: {message}"
