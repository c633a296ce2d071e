"""Memory and speed of one pass over a large published data set: streamed, and read from the local store.

    python benchmarks/streaming_memory.py            # 50,000 samples, about 250 MB in a temporary folder
    python benchmarks/streaming_memory.py 5000

Every sample is read as an evaluation reads it: its picture decoded, its question and references made. Each way runs in
a process of its own. Its own memory (anonymous pages; mapped files are the system's cache, given back when others need
it) is taken every tenth of the pass; flat means that the second half of the pass needs no more than the first.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lmm_forget.tasks.hub import HubTask
from lmm_forget.tasks.scoring.exact import ExactMatchScorer

SIDE, ROWS_PER_GROUP, DIFFERENT = 96, 500, 250


def write(folder: Path, n: int) -> Path:
    """A parquet file of `n` questions with JPEG pictures, in row groups as the hub's files have them."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(DIFFERENT):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "JPEG", quality=60)
        pictures.append(file.getvalue())
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = {"image": {"_type": "Image"}, "question": {"dtype": "string", "_type": "Value"}}
    features |= {
        "answer": {"dtype": "string", "_type": "Value"},
        "unused": {"dtype": "string", "_type": "Value"},
    }
    schema = pa.schema(
        {"image": image, "question": pa.string(), "answer": pa.string(), "unused": pa.string()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    path = folder / "test.parquet"
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, n, ROWS_PER_GROUP):
            rows = [
                {
                    "image": {"bytes": pictures[i % DIFFERENT] + i.to_bytes(4, "big"), "path": None},
                    "question": f"What is number {i}?",
                    "answer": str(i),
                    "unused": "x" * 2000,
                }
                for i in range(start, min(start + ROWS_PER_GROUP, n))
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=ROWS_PER_GROUP)
    return path


def own_memory() -> float:
    """This process's anonymous resident memory, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e3


def one_pass(path: Path, streaming: bool) -> tuple[list[float], float]:
    """Resident memory at every tenth of a pass, and samples per second."""
    task = HubTask(
        name="large",
        role="held_out",
        path=str(path),
        splits={"test": "test"},
        fields={"question": "question", "answer": "answer", "image": "image"},
        streaming=streaming,
        scorer=ExactMatchScorer(),
        max_new_tokens=4,
    )
    samples = task.load_samples("test")
    marks, started = [], time.monotonic()
    for i in range(len(samples)):
        sample = samples[i]
        assert sample.images[0].size == (SIDE, SIDE) and sample.answers == (str(i),)
        if (i + 1) % (len(samples) // 10) == 0:
            marks.append(own_memory())
    return marks, len(samples) / (time.monotonic() - started)


def measure(path: Path, streaming: bool) -> None:
    """Make a pass and print what it took."""
    before = own_memory()
    marks, speed = one_pass(path, streaming)
    growth = max(marks[5:]) - max(marks[:5])
    name = "streamed" if streaming else "stored"
    print(f"{name}: {before:.0f} before, then {' '.join(f'{mark:.0f}' for mark in marks)} MB; ", end="")
    print(f"second half {growth:+.1f} MB; {speed:,.0f} samples/s", flush=True)


def main() -> None:
    """Measure and print."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    with tempfile.TemporaryDirectory() as folder:
        import datasets

        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        path = write(Path(folder), n)
        print(f"{n:,} samples, {path.stat().st_size / 1e6:.0f} MB of parquet", flush=True)
        for streaming in (True, False):
            child = multiprocessing.get_context("fork").Process(target=measure, args=(path, streaming))
            child.start()
            child.join()


if __name__ == "__main__":
    main()
