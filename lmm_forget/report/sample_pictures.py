"""Small pictures of samples whose answers changed: a job, which has the images, writes them for the report's page.

A job's data may be gone when its report is made, so the job writes pictures.parquet beside its answers: a few samples
of each task, in every job the same ones as far as they changed there, at most `MAX_TOTAL_BYTES` in all.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lmm_forget.errors import DataError
from lmm_forget.files import write_atomic
from lmm_forget.tasks.task import Sample

PICTURES_FILE = "pictures.parquet"
PICTURES_VERSION = b"1"
MAX_SAMPLES_PER_DIRECTION = 8
"""Samples per task that got worse at some stage, and again as many that got better, at most."""
MAX_TOTAL_BYTES = 3_000_000
"""Bytes of all pictures of a job."""
MAX_SIDE_PIXELS = 288
"""Longer side of a picture in pixels; smaller images keep their size."""
_SCORE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class SamplePicture:
    """A sample's first image as WebP; `num_images` is the number of images that the sample has."""

    webp: bytes
    width: int
    height: int
    num_images: int


def choose_changed_samples(
    scores_by_sample: Mapping[str, Sequence[float]], max_per_direction: int = MAX_SAMPLES_PER_DIRECTION
) -> list[str]:
    """Ids of changed samples of a task; `scores_by_sample` maps an id to its scores at the base and after every stage.

    At most `max_per_direction` whose score fell below the base's at some stage, and as many whose score rose above it.
    They are taken in the order of a hash of their ids, so that another job selects the same samples if they changed
    there too.
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
    """Write pictures.parquet with the samples of each task that `choose_changed_samples` selects from its scores.

    `samples` holds each task's samples in the order of its scores. Tasks take turns, so that none is left out when
    `max_bytes` is reached. An image that cannot be read any more is left out.
    """
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
    """A job's pictures by (task, sample id); empty if it wrote none, or none that this version can read."""
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
    """An RGB copy of the image, its longer side at most `MAX_SIDE_PIXELS`."""
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
    """(task, sample id, index in the task) of the selected samples: the first of each task, the second of each, …"""
    chosen = {task: choose_changed_samples(each) for task, each in scores_by_task.items()}
    places = {task: {sample: i for i, sample in enumerate(each)} for task, each in scores_by_task.items()}
    for turn in range(max(map(len, chosen.values()), default=0)):
        for task, ids in chosen.items():
            if turn < len(ids):
                yield task, ids[turn], places[task][ids[turn]]
