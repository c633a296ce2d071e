"""The two passes over an exam's samples: look at every question once; then encode, batch by batch, what is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import LmmForgetError
from lmm_forget.evaluation import ask
from lmm_forget.evaluation.ahead import Job, jobs, read, worked
from lmm_forget.store import question_key
from lmm_forget.tasks.base import Sample, Task

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import ProcessorMixin

    from lmm_forget.models.family import Family
    from lmm_forget.models.loading import LMM


@dataclass(frozen=True)
class Look:
    """Reads the samples of a job and keeps of each its extent, its question's key and itself without pictures."""

    family: Family
    processor: ProcessorMixin
    task: Task
    samples: Sequence[Sample]

    def __call__(self, job: Job) -> list[tuple[tuple[Any, ...], str, Sample]]:
        """One entry for every sample of the job. Raises LmmForgetError naming the one that cannot be used."""
        return [
            (ask.extent(self.task, one), self._key(one), replace(one, images=()))
            for one in read(self.task, self.samples, job)
        ]

    def _key(self, sample: Sample) -> str:
        question = self.task.question(sample, training=False)
        try:
            prompt = self.family.prompt(self.processor, question, len(sample.images), sample.system)
        except LmmForgetError as error:
            raise type(error)(f"task {self.task.name}: sample {sample.id}: {error}") from error
        return question_key(prompt, [image_hash(image) for image in sample.images], self.task.max_new_tokens)


@dataclass(frozen=True)
class Encode:
    """Reads the samples of a job and encodes their questions as one batch."""

    family: Family
    processor: ProcessorMixin
    task: Task
    samples: Sequence[Sample]

    def __call__(self, job: Job) -> tuple[Sequence[int], ask.Ready]:
        """The job's positions, and the batch. Raises LmmForgetError naming the sample that cannot be used."""
        samples = read(self.task, self.samples, job)
        return job.places, ask.encode_batch(self.family, self.processor, self.task, samples)


def looked_at(
    lmm: LMM, task: Task, samples: Sequence[Sample], size: int, workers: int
) -> tuple[list[list[int]], list[str], list[Sample]]:
    """Batches of `size` positions, and of every sample its question's key and itself without pictures."""
    work = Look(lmm.family, lmm.processor, task, samples)
    chunks = [range(start, min(start + size, len(samples))) for start in range(0, len(samples), size)]
    batches: list[list[int]] = []
    keys: list[str] = []
    light: list[Sample] = []
    window: dict[int, tuple[Any, ...]] = {}
    todo = jobs(task, samples, chunks)
    for found in worked(work, todo, workers=_enough(workers, chunks), what=f"task {task.name}"):
        for extent, key, sample in found:
            window[len(keys)] = extent
            keys.append(key)
            light.append(sample)
        if len(window) >= ask.WINDOW * size:
            batches += ask.sorted_batches(window, size)
            window = {}
    return [*batches, *ask.sorted_batches(window, size)], keys, light


def encoded(
    lmm: LMM, task: Task, samples: Sequence[Sample], batches: Sequence[Sequence[int]], workers: int
) -> Generator[tuple[Sequence[int], ask.Ready], None, None]:
    """Every batch with its questions encoded, in order, read ahead by `workers` processes."""
    work = Encode(lmm.family, lmm.processor, task, samples)
    todo = jobs(task, samples, batches)
    return worked(work, todo, workers=_enough(workers, batches), what=f"task {task.name}")


def _enough(workers: int, batches: Sequence[Sequence[int]]) -> int:
    """No more processes than there are batches, and none for a single one."""
    return min(workers, len(batches)) if len(batches) > 1 else 0


def image_hash(image: Image) -> str:
    """SHA-256 (hex) of an image as it is decoded: mode, size and pixels."""
    if image.mode == "P":  # the pixels of a palette image mean nothing without it
        image = image.convert("RGBA")
    found = hashlib.sha256(f"{image.mode}{image.size}".encode())
    found.update(image.tobytes())
    return found.hexdigest()
