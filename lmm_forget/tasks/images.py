"""Pictures, wherever they lie, as the RGB that models are shown: the one place that opens them."""

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

from lmm_forget.errors import DataError, brief

VERSION = 1
"""Of the conversion below; part of a task's fingerprint, raised when pixels change."""
Source = Path | bytes | str
"""Where a picture is: a file, the bytes of one, or a URL as it was written (of which `data:` is read)."""
INSPECTED_AT_ONCE = 256
"""Pictures that are waiting to be opened, or whose digests are waiting to be taken, when many are inspected."""

_UPRIGHT = {  # EXIF orientation -> how the stored picture has to be turned
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations that exchange width and height
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_URL = re.compile(r"data:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DATA_URL = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),(.*)", re.IGNORECASE | re.DOTALL)
_BASE64 = re.compile(r"/(?:iVBOR|9j/|R0lGOD|UklGR)[A-Za-z0-9+/=]{40,}$")  # how PNG, JPEG, GIF and WebP begin
_OF_URLS = bytes.maketrans(b"-_", b"+/")  # the alphabet of base64 in URLs, and the usual one
_EMPTY = hashlib.sha256().hexdigest()

# What Pillow says beside its exceptions is no line for people: a picture is read, or it is a bad sample.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _silence_libtiff() -> None:
    """Let libtiff, which Pillow reads TIFFs with, write nothing to stderr of its own: what it found Pillow raises.

    Done once, where Linux tells which library is loaded; a handler is the whole process's, so no thread can be missed.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            loaded = {line.split(maxsplit=5)[5].strip() for line in maps if "/libtiff" in line}
        for path in loaded:
            library = ctypes.CDLL(path)
            for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                handler(None)
    except (OSError, AttributeError):  # another system, or a library without these: its lines stay
        return


_silence_libtiff()


@dataclass(frozen=True)
class Inspected:
    """What opening a picture showed: `content` and `pixels` are its SHA-256 (hex), or `reason` says why it is none.

    `content` is that of the file's bytes, `pixels` that of what models are shown (see `image_hash`).
    """

    content: str | None
    pixels: str | None
    reason: str | None = None


def source_of(name: str, root: Path) -> Source:
    """The source that a data file names: a URL as it stands, or a file, below `root` unless it is absolute.

    Blanks around a URL do not count, as in a browser; a name that is all blank is kept, to be refused as empty.
    """
    if not name.strip():
        return ""
    return name.strip() if _URL.match(name.strip()) else Path(os.path.abspath(root / name))


def name_of(source: Source, root: Path) -> str:
    """A short name for a picture: its path below `root`, or for what has none a digest of what was written."""
    if isinstance(source, Path):
        return Path(os.path.relpath(source, root)).as_posix()
    written = source if isinstance(source, bytes) else source.encode()
    return f"sha256-{hashlib.sha256(written).hexdigest()[:16]}"


def read_image(source: Source) -> Image.Image:
    """A picture as 8-bit RGB, upright (EXIF), transparent parts on white, 16 bits scaled to 8.

    Of an animation it is the first frame. Raises DataError, in one short line with the reason, if the picture is
    missing or cannot be read, whatever went wrong.
    """
    with _opened(source) as opened:
        return _upright_rgb(opened)


def picture_size(source: Source) -> tuple[int, int]:
    """Width and height of a picture as it will be read (upright), from its header. Raises DataError as `read_image`."""
    with _opened(source) as opened:
        width, height = opened.size
        return (height, width) if _orientation(opened) in _ON_ITS_SIDE else (width, height)


def content_digest(source: Source) -> str | None:
    """SHA-256 (hex) of a picture file's bytes, wherever they lie; None where there are none to be had."""
    try:
        with _stream(source) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except Exception:  # why not is for `read_image` to say
        return None


def image_hash(image: Image.Image) -> str:
    """SHA-256 (hex) of a picture as it is decoded: mode, size and pixels."""
    if image.mode == "P":  # the pixels of a palette image mean nothing without it
        image = image.convert("RGBA")
    found = hashlib.sha256(f"{image.mode}{image.size}".encode())
    found.update(image.tobytes())
    return found.hexdigest()


def inspect_all(sources: Iterable[Source], known: dict[str, str] | None = None) -> dict[Source, Inspected]:
    """Open every picture once, side by side; of files with equal bytes only the first is decoded.

    `known` (content -> pixels) carries what was decoded on to a further call.
    """
    known = {} if known is None else known

    def one(source: Source) -> Inspected:
        content = content_digest(source)
        if content in known:
            return Inspected(content, known[content])
        try:
            pixels = image_hash(read_image(source))
        except DataError as error:
            return Inspected(content, None, str(error))
        if content is not None:
            known[content] = pixels
        return Inspected(content, pixels)

    found: dict[Source, Inspected] = {}
    todo = iter(dict.fromkeys(sources))
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(todo, INSPECTED_AT_ONCE)):
            found.update(zip(chunk, pool.map(one, chunk), strict=True))
    return found


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


def _upright_rgb(opened: Image.Image) -> Image.Image:
    opened.load()
    if 0 in opened.size:
        raise DataError(f"has no pixels ({opened.width} x {opened.height})")
    turn = _UPRIGHT.get(_orientation(opened))
    return to_rgb(opened if turn is None else opened.transpose(turn))


def _orientation(opened: Image.Image) -> int:
    found = opened.getexif().get(ExifTags.Base.Orientation, 1)
    return found if isinstance(found, int) else 1


@contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """The open picture. Whatever goes wrong, also while it is decoded in the block, becomes a DataError.

    Pillow's readers raise whatever the damaged bytes lead them into: OSError, SyntaxError, struct.error, KeyError,
    OverflowError, MemoryError and more.
    """
    where = "image" if isinstance(source, bytes) or source == "" else f"image {_described(source)}"
    try:
        with _stream(source) as file, Image.open(file) as opened:
            yield opened
    except FileNotFoundError:
        raise DataError(f"{where} is missing{_hint(source)}") from None
    except DataError as error:
        raise DataError(f"{where} {error}") from None
    except Exception as error:
        raise DataError(f"{where} cannot be read ({_reason(error, source)}){_hint(source)}") from None


def _stream(source: Source) -> io.BytesIO | io.BufferedReader:
    """The picture file's bytes, open for reading. Raises DataError without the picture's name, or OSError."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, str):
        return io.BytesIO(_url_bytes(source))
    if source.exists() and not source.is_file():  # a pipe would be waited for, a device never ends
        raise DataError("is not a file" if not source.is_dir() else "is a folder")
    return open(source, "rb")


def _url_bytes(url: str) -> bytes:
    """What a `data:` URL holds, as browsers read it: padding may be missing, and the alphabet be the one of URLs.

    Raises DataError for other URLs, and for one that is none.
    """
    url = url.strip()
    if not url:
        raise DataError("is empty")
    scheme = url[: url.index(":")].lower()
    if scheme != "data":
        if scheme == "file":
            raise DataError("is a URL; give the file's path")
        raise DataError("is a link, and nothing is downloaded; store the picture and give the file's path")
    match = _DATA_URL.fullmatch(url)
    if match is None:
        raise DataError("is no data URL; it looks like data:image/png;base64,…")
    kind, options, written = match[1].strip().lower(), match[2].lower().split(";"), match[3]
    if not kind.startswith("image/"):
        raise DataError(f"holds {brief(kind) or 'text'}, not an image/…")
    content = unquote_to_bytes(written)
    if "base64" not in (option.strip() for option in options):
        return content
    try:
        signs = re.sub(rb"\s+", b"", content).translate(_OF_URLS)
        padded = signs if b"=" in signs else signs + b"=" * (-len(signs) % 4)
        return base64.b64decode(padded, validate=True)
    except ValueError as error:
        raise DataError(f"is not valid base64 ({brief(error)})") from None


def _described(source: Path | str) -> str:
    if isinstance(source, Path):
        return brief(source, 240)
    head = source[:48] + "…" if len(source) > 48 and source[:5].lower() == "data:" else brief(source, 120)
    return f"{brief(head)} ({len(source):,} characters)" if head.endswith("…") else head


def _hint(source: Source) -> str:
    """What a path that is none may have been meant as."""
    if isinstance(source, Path) and _BASE64.search(str(source)):
        return "; if it is the picture in base64, write data:image/png;base64, in front"
    return ""


def _reason(error: Exception, source: Source) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image file" if content_digest(source) != _EMPTY else "empty file"
    if isinstance(error, OSError) and error.strerror:
        return brief(error.strerror)  # without the path, which the line has
    said = brief(error, 120)
    if not said:
        return type(error).__name__
    plain = isinstance(error, OSError | ValueError | SyntaxError | Image.DecompressionBombError)
    return said if plain else f"{type(error).__name__}: {said}"
