"""Small pictures of the samples whose answers changed: kept by the job, which has the images, shown by the page.

A job's data may be gone or elsewhere when somebody reads its report, so it leaves pictures.parquet beside its answers:
a few samples of each task, the same ones in every job as far as they changed there, at most `MAX_TOTAL_BYTES` in all.
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
from lmm_forget.tasks.task import Sample

PICTURES_FILE = "pictures.parquet"
PICTURES_VERSION = b"1"
MAX_SAMPLES_PER_DIRECTION = 8
"""Samples kept per task of those that got worse at some stage, and again of those that got better."""
MAX_TOTAL_BYTES = 3_000_000
"""Of all pictures of a job."""
MAX_SIDE_PIXELS = 288
"""Pixels of a picture's longer side; smaller ones are kept as they are."""
_SCORE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class SamplePicture:
    """A sample's first image as WebP; `images` says how many the sample has."""

    webp: bytes
    width: int
    height: int
    num_images: int


def choose_changed_samples(
    scores_by_sample: Mapping[str, Sequence[float]], max_per_direction: int = MAX_SAMPLES_PER_DIRECTION
) -> list[str]:
    """The samples of one task worth showing: `values` maps a sample's id to its scores at the base and every stage.

    At most `most` that fell below their base's score at some stage and as many that rose above it, in the order of a
    hash of their ids: another job chooses the same ones where they changed in it too.
    """
    order = sorted(scores_by_sample, key=lambda sample: hashlib.sha256(sample.encode()).digest())
    lowered = [
        s for s in order if any(value < scores_by_sample[s][0] - _SCORE_TOLERANCE for value in scores_by_sample[s][1:])
    ][:max_per_direction]
    raised = [
        s for s in order if any(value > scores_by_sample[s][0] + _SCORE_TOLERANCE for value in scores_by_sample[s][1:])
    ][:max_per_direction]
    return list(dict.fromkeys((*lowered, *raised)))


def write_sample_pictures(
    folder: Path,
    scores_by_task: Mapping[str, Mapping[str, Sequence[float]]],
    samples: Mapping[str, Sequence[Sample]],
    max_bytes: int = MAX_TOTAL_BYTES,
) -> Path:
    """Write pictures.parquet: for each task of `values` (see `choose`), of the samples chosen.

    `samples` are the task's in the order in which they were asked. Tasks take turns, so that none is left out when
    `max_bytes` are reached. An image that cannot be read any more is left out.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    remaining_bytes = max_bytes
    for task, sample_id, place in _interleave_tasks(scores_by_task):
        try:
            sample = samples[task][place]
        except (DataError, OSError, IndexError, KeyError):
            continue
        if sample.id != sample_id or not sample.images:
            continue
        small = shrink_image(sample.images[0])
        content = _encode_webp(small)
        if len(content) > remaining_bytes:
            continue
        remaining_bytes -= len(content)
        size = {"width": small.width, "height": small.height, "images": len(sample.images)}
        rows.append({"task": task, "sample_id": sample_id, **size, "webp": content})
    schema = pa.schema(
        [
            ("task", pa.string()),
            ("sample_id", pa.string()),
            *((name, pa.int32()) for name in ("width", "height", "images")),
            ("webp", pa.binary()),
        ],
        metadata={"lmm_forget.pictures": PICTURES_VERSION},
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    return write_atomic(folder / PICTURES_FILE, buffer.getvalue())


def read_sample_pictures(folder: Path) -> dict[tuple[str, str], SamplePicture]:
    """A job's pictures by (task, sample id); empty if it left none, or none that this version can read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(folder / PICTURES_FILE)
    except (FileNotFoundError, pa.ArrowException, OSError):
        return {}
    if (table.schema.metadata or {}).get(b"lmm_forget.pictures") != PICTURES_VERSION:
        return {}
    return {
        (row["task"], row["sample_id"]): SamplePicture(row["webp"], row["width"], row["height"], row["images"])
        for row in table.to_pylist()
    }


def shrink_image(image: Image.Image) -> Image.Image:
    """At most `LONGEST` pixels on the longer side, RGB."""
    small = image.convert("RGB")
    small.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS), Image.Resampling.LANCZOS)
    return small


def _encode_webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=62, method=4)
    return buffer.getvalue()


def _interleave_tasks(
    scores_by_task: Mapping[str, Mapping[str, Sequence[float]]],
) -> Iterable[tuple[str, str, int]]:
    """(task, sample id, place in the task) of the chosen samples: the first of each task, the second of each …"""
    chosen = {task: choose_changed_samples(each) for task, each in scores_by_task.items()}
    places = {task: {sample: i for i, sample in enumerate(each)} for task, each in scores_by_task.items()}
    for turn in range(max(map(len, chosen.values()), default=0)):
        for task, ids in chosen.items():
            if turn < len(ids):
                yield task, ids[turn], places[task][ids[turn]]
