"""A picture that cannot be opened is a bad sample in every reader, for `run` and `data check`, in one short line."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, features

from lmm_forget.data.inspection import inspect_splits
from lmm_forget.errors import MAX_MESSAGE_LENGTH, DataError
from tests.tasks.test_images import exif, png_header
from tests.tasks.test_same_pictures import (
    READERS,
    Reader,
    hub_with_paths,
    hub_with_pictures,
    jsonl,
    llava,
    stored,
    urls,
)


def broken_avif() -> bytes:
    """An AVIF whose main picture is missing; Pillow raises RuntimeError for it."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, "AVIF", exif=exif())
    return file.getvalue().replace(b"pitm", b"xxxx")


def broken_files() -> dict[str, bytes]:
    found = {
        "bomb.png": png_header(200_000, 200_000),
        "short.png": png_header(64, 64),
        "empty.png": b"",
        "text.png": b"<html>",
    }
    return {**found, "broken.avif": broken_avif()} if features.check("avif") else found


@pytest.mark.parametrize("reader", READERS)
def test_broken_files(tmp_path: Path, reader: Reader) -> None:
    rows = [{"id": "good", "images": [stored(tmp_path, 1, "good")], "split": "test"}]
    for name, content in broken_files().items():
        (tmp_path / name).write_bytes(content)
        rows.append({"id": f"bad {name}", "images": ["pics/good.png", name], "split": "test"})
    check(reader(tmp_path, rows, role="held_out"), len(rows) - 1)


LONG = base64.b64encode(png_header(64, 64) * 900).decode()
WRITTEN = {
    "cut": "data:image/png;base64," + LONG,
    "letters": "data:image/png;base64," + LONG + "~",
    "kind": "data:application/pdf;base64," + LONG,
    "comma": "data:image/png;base64" + LONG,
    "bare": LONG,
    "link": "https://example.org/picture.png",
}


@pytest.mark.parametrize("reader", [one for one in READERS if one not in (urls, hub_with_pictures)])
def test_what_is_written_for_a_picture(tmp_path: Path, reader: Reader) -> None:
    """Over 80,000 characters that are no picture are not echoed."""
    assert len(LONG) > 80_000
    rows = [{"id": "good", "images": [stored(tmp_path, 1, "good")], "split": "test"}]
    rows += [{"id": f"bad {key}", "images": [name], "split": "test"} for key, name in WRITTEN.items()]
    check(reader(tmp_path, rows, role="held_out"), len(WRITTEN))


def check(task: Any, bad: int) -> None:
    """All samples but the first cannot be used: refused with the first one's id, left out, and told."""
    with pytest.raises(DataError) as caught:
        task.validate_split("test")
    line = str(caught.value)
    assert f"{bad} of {bad + 1} " in line and "(first: bad " in line and len(line) < 500 and line.isprintable()
    usable = task.validate_split("test", "skip")
    assert [sample.id for sample in usable] == ["good"] and len(usable.skipped) == bad
    (seen,), _ = inspect_splits(task)
    assert seen.read_samples == 1 and len(seen.unusable) == bad
    for said in [*seen.unusable, *usable.skipped.values()]:
        assert said.startswith("bad ") and len(said) < 400 and said.isprintable()


def test_data_urls_of_a_data_set_on_the_hub_are_read(tmp_path: Path) -> None:
    """A text column with data URLs, as some data sets are published."""
    stored(tmp_path, 9, "one")
    written = base64.b64encode((tmp_path / "pics" / "one.png").read_bytes()).decode()
    rows = [
        {"id": "file", "images": ["pics/one.png"], "split": "test"},
        {"id": "url", "images": [f"data:image/png;base64,{written}"], "split": "test"},
    ]
    part = hub_with_paths(tmp_path, rows).validate_split("test")
    assert part[0].images[0].tobytes() == part[1].images[0].tobytes()
    assert part[0].image_id == part[1].image_id


def test_a_picture_in_the_wrong_place_is_not_echoed(tmp_path: Path) -> None:
    """A data URL under another key than the picture's."""
    long = "data:image/png;base64," + LONG
    for key, name in (("split", long), ("id", long)):
        rows = [{"id": "good", "images": [], "split": "test"}] + 2 * [
            {"id": "b", "images": [], "split": "test", key: name}
        ]
        for reader in (jsonl, llava):
            with pytest.raises(DataError, match="data:image") as caught:
                reader(tmp_path, rows, role="held_out").validate_split("test")
            assert len(str(caught.value)) < 600
    assert len(str(DataError(long))) == MAX_MESSAGE_LENGTH and str(DataError("a\nb")) == "a\nb"
