"""How fast an evaluation is fed: pictures decoded, questions encoded and answers scored, with and without workers.

    python benchmarks/reading_speed.py [SAMPLES] [WORKERS ...]      # default: 2000 0 2

Photo-sized JPEG pictures in a parquet file, stored and streamed, go through the two passes of an evaluation with the
processor of the embedded model; in place of the model an answer is made up, and scored. Each way runs in a process of
its own; its own memory (anonymous pages) and that of its workers are taken on the way.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WIDTH, HEIGHT, DIFFERENT, ROWS_PER_GROUP, BATCH = 640, 480, 60, 200, 32


def write(folder: Path, n: int) -> Path:
    """A parquet file of `n` questions with pictures."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(DIFFERENT):
        small = Image.fromarray(random.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((WIDTH, HEIGHT)).save(file, "JPEG", quality=85)
        pictures.append(file.getvalue())
    rows = [{"image": pictures[i % DIFFERENT], "question": f"What is number {i}?", "answer": str(i)} for i in range(n)]
    path = folder / "test.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=ROWS_PER_GROUP)
    return path


def own_memory(pid: int) -> float:
    """Anonymous resident memory of a process and its children, MB."""
    total = 0.0
    for one in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
        lines = Path(f"/proc/{one}/status").read_text().splitlines()
        total += next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0) / 1e3
    return total


def measure(path: Path, streaming: bool, workers: int) -> None:
    """Make both passes and print what they took."""
    import torch

    from lmm_forget.config import compose_config, resolve_config
    from lmm_forget.evaluation.question_encoding import encode_question_batches, index_questions
    from lmm_forget.evaluation.scored_answers import score_response
    from lmm_forget.models.loading import load_model
    from lmm_forget.store import CachedResponse
    from lmm_forget.tasks.hub import HubTask
    from lmm_forget.tasks.scoring.exact import ExactMatchScorer

    torch.set_num_threads(1)
    lmm = load_model(resolve_config(compose_config(["experiment=smoke"]))["model"])
    task = HubTask(
        name="photos",
        role="held_out",
        path=str(path),
        splits={"test": "test"},
        fields={"question": "question", "answer": "answer", "image": "image"},
        streaming=streaming,
        scorer=ExactMatchScorer(),
        max_new_tokens=4,
    )
    samples = task.load_samples("test")
    started = time.monotonic()
    batches, _, light = index_questions(lmm, task, samples, BATCH, workers)
    looked = len(samples) / (time.monotonic() - started)
    marks: list[float] = []
    right, every = 0.0, max(1, len(batches) // 10)
    started = time.monotonic()
    with closing(encode_question_batches(lmm, task, samples, batches, workers)) as ready:
        for number, (places, _) in enumerate(ready, 1):
            for place in places:
                right += score_response(task, light[place], CachedResponse(light[place].answers[0], 1, 1.0)).value
            if number % every == 0:
                marks.append(own_memory(os.getpid()))
    fed = len(samples) / (time.monotonic() - started)
    assert right == len(samples)
    print(
        f"{'streamed' if streaming else 'stored'}, {workers} workers: {looked:,.0f} samples/s looked at, "
        f"{fed:,.0f} encoded and scored; memory {' '.join(f'{mark:.0f}' for mark in marks)} MB",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    n, *workers = [int(word) for word in sys.argv[1:]] or [2000]
    with tempfile.TemporaryDirectory() as folder:
        import datasets

        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        path = write(Path(folder), n)
        print(f"{n:,} samples of {WIDTH} x {HEIGHT} pixels, {path.stat().st_size / 1e6:.0f} MB", flush=True)
        for streaming in (False, True):
            for number in workers or [0, 2]:
                child = multiprocessing.get_context("fork").Process(target=measure, args=(path, streaming, number))
                child.start()
                child.join()


if __name__ == "__main__":
    main()
