"""Pictures of every mode come out as the same 8-bit RGB; broken files are named with a reason."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import random
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from lmm_forget.errors import DataError
from lmm_forget.tasks.images import hash_image_file, parse_image_source, read_image, read_image_size

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


# --- whatever is wrong with a file, one line says so ---------------------------------------------------------------


def exif(orientation: int = 6) -> Image.Exif:
    """A block with what cameras write, so that damage finds something."""
    made = Image.Exif()
    made[0x0112], made[0x010F], made[0x011A] = orientation, "Maker", 72.0
    made.get_ifd(0x8769)[0x829A] = 0.01
    made.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    return made


def seeds() -> dict[str, bytes]:
    """A small valid file of every kind, by format and way of saving."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 16, 3), dtype=np.uint8)
    color = Image.fromarray(noise)
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("PNG", color, {"exif": exif()}),
        ("PNG", color.convert("P"), {"transparency": 3}),
        ("PNG", Image.fromarray(noise[..., 0].astype(np.uint16) * 257), {}),
        ("PNG", color.convert("LA"), {}),
        ("JPEG", color, {"exif": exif()}),
        ("JPEG", color.convert("CMYK"), {}),
        ("WEBP", color, {"exif": exif()}),
        ("WEBP", color, {"lossless": True}),
        ("GIF", color.convert("P"), {"save_all": True, "append_images": [color.rotate(90).convert("P")]}),
        ("BMP", color, {}),
        ("TIFF", color, {"exif": exif()}),
        ("AVIF", color, {"exif": exif()}),
    ]
    if not features.check("avif"):
        kinds = [kind for kind in kinds if kind[0] != "AVIF"]
    found = {}
    for number, (kind, image, options) in enumerate(kinds):
        file = io.BytesIO()
        image.save(file, kind, **options)
        found[f"{number} {kind}"] = file.getvalue()
    return found


def damaged(whole: bytes, draw: random.Random) -> bytes:
    """The file cut short, or with bytes changed: mostly in its EXIF block, if it has one, or in its first headers."""
    if draw.random() < 0.1:
        return whole[: draw.randrange(len(whole))]
    found = bytearray(whole)
    blocks = [(0, 64), (0, 300), (0, len(found))]
    start = max(whole.rfind(mark) for mark in (b"II*\0", b"MM\0*"))
    blocks += [(start, start + 160)] * 4 * (start > 0)
    for _ in range(draw.choice([1, 2, 4, 16])):
        low, high = draw.choice(blocks)
        at = draw.randrange(low, min(high, len(found)))
        found[at] = draw.choice([0, 255, draw.randrange(256), found[at] ^ 1 << draw.randrange(8)])
    return bytes(found)


def outcome(content: bytes) -> str:
    """The picture's size, or the line that says why there is none; anything else that is raised fails the test."""
    try:
        with contextlib.suppress(DataError):
            read_image_size(content)
        read = read_image(content)
    except DataError as error:
        line = str(error)
        assert line.startswith("image ") and len(line) < 200 and line.isprintable(), line
        return line
    assert read.mode == "RGB" and min(read.size) > 0
    return f"{read.size}"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_are_pictures_or_bad_samples() -> None:
    """Found this way: AVIF that raises RuntimeError, and EXIF that raises TypeError or struct.error when it is kept."""
    draw, whole = random.Random(14), seeds()
    assert all(outcome(content) in ("(16, 24)", "(24, 16)") for content in whole.values())
    found = Counter(outcome(damaged(content, draw))[:5] for content in whole.values() for _ in range(50))
    assert found["image"] > 100 and sum(found.values()) - found["image"] > 50, found


def png_header(width: int, height: int, kind: int = 2) -> bytes:
    """A PNG that says it is so large."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 64)
    chunks = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in (body, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + b"\0\0\0\0IEND\xaeB`\x82"


LARGE = [
    (png_header(200_000, 200_000), "cannot be read .Image size .40000000000 pixels. exceeds limit"),
    (png_header(2**31 - 1, 1), "cannot be read"),
    (png_header(2**31 - 1, 2**31 - 1), "cannot be read"),
    (png_header(0, 5), "cannot be read|has no pixels"),
    (b"GIF89a" + bytes(7) + b",\0\0\0\0\0\0\0\0\0\2\0;", "cannot be read|has no pixels"),
]


@pytest.mark.parametrize(("content", "message"), LARGE, ids=range(len(LARGE)))
def test_sizes_that_no_picture_has(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"^image ({message})"):
        read_image(content)


@pytest.mark.parametrize("reader", [read_image, read_image_size])
@pytest.mark.parametrize("kind", [struct.error, KeyError, OverflowError, MemoryError, RecursionError, TypeError])
def test_what_a_decoder_raises_is_one_line(
    kind: type[Exception], reader: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Decoders of damaged bytes raise what they are led into, at opening, at decoding or in their metadata."""

    def fail(*_: Any, **__: Any) -> None:
        raise kind("first line\nsecond line")

    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    monkeypatch.setattr("PIL.Image.Image.getexif", fail)
    with pytest.raises(DataError, match=r"x\.png cannot be read \(\w+: .?first line.*second line.?\)$") as caught:
        reader(tmp_path / "x.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_pillows_own(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    read = saved(image, tmp_path, exif=exif(orientation))
    with Image.open(tmp_path / "x.png") as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    assert read.size == expected.size == read_image_size(tmp_path / "x.png")
    assert read.tobytes() == expected.tobytes()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (("pipe.png", "is not a file"), (".", "is a folder"), ("/dev/zero", "is not a file")):
        with pytest.raises(DataError, match=reason):
            read_image(tmp_path / name)


def test_pillow_says_nothing_beside(tmp_path: Path) -> None:
    """A warning of Pillow's (a large picture) and its log (a TIFF with too many samples) reach no screen."""
    Image.new("1", (10_000, 9_000)).save(tmp_path / "large.bmp")
    code = (
        "import sys, logging; from pathlib import Path; from lmm_forget.tasks.images import read_image_size;"
        "print(read_image_size(Path(sys.argv[1]))); logging.getLogger('PIL.TiffImagePlugin').error('More samples')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "large.bmp")], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("(10000, 9000)\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="libtiff is only found on Linux")
def test_libtiff_says_nothing_beside(tmp_path: Path) -> None:
    """What libtiff writes about a damaged TIFF goes to file descriptor 2, past everything Python has."""
    noise = Image.effect_noise((64, 64), 50)
    names = []
    for kind in ("tiff_adobe_deflate", "tiff_lzw"):
        noise.save(tmp_path / "x.tif", compression=kind)
        content = bytearray((tmp_path / "x.tif").read_bytes())
        content[60:300] = b"\xff" * 240
        names.append(str(tmp_path / f"{kind}.tif"))
        Path(names[-1]).write_bytes(content)
    code = (
        "import sys; from PIL import Image\nfor name in sys.argv[1:]:\n try: Image.open(name).load()\n"
        " except OSError as error: print(error)"
    )
    for first, silent in (("", False), ("from lmm_forget.tasks import images\n", True)):
        done = subprocess.run([sys.executable, "-c", first + code, *names], capture_output=True, text=True, check=False)
        assert done.stdout == "decoder error -2\n" * 2 and (done.stderr == "") is silent


# --- URLs ----------------------------------------------------------------------------------------------------------


def url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_data_urls_are_pictures(tmp_path: Path) -> None:
    """As browsers read them: blanks around them, no padding and the alphabet of URLs are no fault."""
    file = io.BytesIO()
    Image.new("RGB", (3, 2), RED).save(file, "PNG")
    content = file.getvalue()
    content += b"x" * (-len(content) % 3) + b"\xfb\xef\xbe\xff\xff\xff" + b"x"  # ++++////: it may stand behind
    plain = base64.b64encode(content).decode()
    of_urls = base64.urlsafe_b64encode(content).decode()
    assert plain.endswith("==") and {"-", "_"} <= set(of_urls)
    for written in (
        url(content),
        url(content, "image/jpeg"),  # the bytes decide
        f"DATA:image/PNG;charset=utf-8;base64,{plain}",
        f"data:image/png;base64,{plain[:20]}\n{plain[20:]}",
        f"data:image/png;base64,{quote(plain)}",
        f"data:image/png,{quote(content)}",
        f"data:image/png;base64,{plain.rstrip('=')}",
        f"data:image/png;base64,{of_urls}",
        f"data:image/png;base64,{of_urls.rstrip('=')}",
        f" \n{url(content)}\t",
    ):
        assert parse_image_source(written, tmp_path) == written.strip()
        assert read_image(written).getpixel((1, 1)) == RED and read_image_size(written) == (3, 2)
        assert hash_image_file(written) == hashlib.sha256(content).hexdigest(), "as if it were a file"


LONG = "A" * 80_000
REFUSED = [
    (f"data:image/png;base64,{LONG}", r"cannot be read \(not an image file\)"),
    (f"data:image/png;base64,{LONG}*", "is not valid base64"),
    (f"data:image/png;base64,{LONG}A", "is not valid base64"),
    (f"data:image/png;base64,{LONG}AA=", "is not valid base64"),
    (f" data:image/png;base64,{LONG}*", "is not valid base64"),
    ("", "^image is empty$"),
    (" \n", "^image is empty$"),
    (f"data:text/plain;base64,{LONG}", "holds text/plain, not an image"),
    (f"data:{LONG};base64,{LONG}", "holds a+….*, not an image"),
    (f"data:,{LONG}", "holds text, not an image"),
    (f"data:image/png;base64 {LONG}", "is no data URL; it looks like data:image/png;base64,…"),
    ("data:image/png;base64,", r"cannot be read \(empty file\)"),
    (f"https://example.org/{LONG}.png", "is a link, and nothing is downloaded; store the image"),
    ("HTTP://example.org/x.png", "is a link, and nothing is downloaded"),
    ("s3://bucket/x.png", "is a link, and nothing is downloaded"),
    ("file:///x.png", "is a URL; give the file's path"),
    (base64.b64encode(png_header(9, 9)).decode() + LONG, "write data:image/png;base64, in front"),
]


@pytest.mark.parametrize(("name", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_written_for_an_image_is_echoed_in_short(tmp_path: Path, name: str, message: str) -> None:
    source = parse_image_source(name, tmp_path)
    for reader in (read_image, read_image_size):
        with pytest.raises(DataError, match=message) as caught:
            reader(source)
        line = str(caught.value)
        assert len(line) < 400 and line.isprintable()
