"""Small pictures of the samples whose answers changed: kept by the job, which has the images, shown by the page.

A job's data may be gone or elsewhere when somebody reads its report, so it leaves pictures.parquet beside its answers:
a few samples of each task, the same ones in every job as far as they changed there, at most `MOST_BYTES` in all.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lmm_forget.errors import DataError
from lmm_forget.files import write_atomic
from lmm_forget.tasks.base import Sample

FILE = "pictures.parquet"
VERSION = b"1"
EACH_WAY = 8
"""Samples kept per task of those that got worse at some stage, and again of those that got better."""
MOST_BYTES = 3_000_000
"""Of all pictures of a job."""
LONGEST = 288
"""Pixels of a picture's longer side; smaller ones are kept as they are."""
_SAME = 1e-9


@dataclass(frozen=True)
class Picture:
    """A sample's first image as WebP; `images` says how many the sample has."""

    webp: bytes
    width: int
    height: int
    images: int


def choose(values: Mapping[str, Sequence[float]], most: int = EACH_WAY) -> list[str]:
    """The samples of one task worth showing: `values` maps a sample's id to its scores at the base and every stage.

    At most `most` that fell below their base's score at some stage and as many that rose above it, in the order of a
    hash of their ids: another job chooses the same ones where they changed in it too.
    """
    order = sorted(values, key=lambda sample: hashlib.sha256(sample.encode()).digest())
    fell = [s for s in order if any(value < values[s][0] - _SAME for value in values[s][1:])][:most]
    rose = [s for s in order if any(value > values[s][0] + _SAME for value in values[s][1:])][:most]
    return list(dict.fromkeys((*fell, *rose)))


def write_pictures(
    folder: Path,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    samples: Mapping[str, Sequence[Sample]],
    most_bytes: int = MOST_BYTES,
) -> Path:
    """Write pictures.parquet: for each task of `values` (see `choose`), of the samples chosen.

    `samples` are the task's in the order in which they were asked. Tasks take turns, so that none is left out when
    `most_bytes` are reached. An image that cannot be read any more is left out.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    left = most_bytes
    for task, sample_id, place in _in_turn(values):
        try:
            sample = samples[task][place]
        except (DataError, OSError, IndexError, KeyError):
            continue
        if sample.id != sample_id or not sample.images:
            continue
        small = shrink(sample.images[0])
        content = _webp(small)
        if len(content) > left:
            continue
        left -= len(content)
        size = {"width": small.width, "height": small.height, "images": len(sample.images)}
        rows.append({"task": task, "sample_id": sample_id, **size, "webp": content})
    schema = pa.schema(
        [
            ("task", pa.string()),
            ("sample_id", pa.string()),
            *((name, pa.int32()) for name in ("width", "height", "images")),
            ("webp", pa.binary()),
        ],
        metadata={"lmm_forget.pictures": VERSION},
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    return write_atomic(folder / FILE, buffer.getvalue())


def read_pictures(folder: Path) -> dict[tuple[str, str], Picture]:
    """A job's pictures by (task, sample id); empty if it left none, or none that this version can read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(folder / FILE)
    except (FileNotFoundError, pa.ArrowException, OSError):
        return {}
    if (table.schema.metadata or {}).get(b"lmm_forget.pictures") != VERSION:
        return {}
    return {
        (row["task"], row["sample_id"]): Picture(row["webp"], row["width"], row["height"], row["images"])
        for row in table.to_pylist()
    }


def shrink(image: Image.Image) -> Image.Image:
    """At most `LONGEST` pixels on the longer side, RGB."""
    small = image.convert("RGB")
    small.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return small


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=62, method=4)
    return buffer.getvalue()


def _in_turn(values: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterable[tuple[str, str, int]]:
    """(task, sample id, place in the task) of the chosen samples: the first of each task, the second of each …"""
    chosen = {task: choose(each) for task, each in values.items()}
    places = {task: {sample: i for i, sample in enumerate(each)} for task, each in values.items()}
    for turn in range(max(map(len, chosen.values()), default=0)):
        for task, ids in chosen.items():
            if turn < len(ids):
                yield task, ids[turn], places[task][ids[turn]]
