"""The two passes over an exam's samples: look at every question once; then encode, batch by batch, what is asked."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import LmmForgetError
from lmm_forget.evaluation import ask
from lmm_forget.evaluation.ahead import Job, jobs, read, worked
from lmm_forget.store import question_key
from lmm_forget.tasks.base import Sample, Task
from lmm_forget.tasks.clusters import image_ids
from lmm_forget.tasks.images import image_hash

if TYPE_CHECKING:
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

    def __call__(self, job: Job) -> list[tuple[tuple[Any, ...], str, Sample, list[str]]]:
        """One entry for every sample of the job, its pictures' digests last. Raises LmmForgetError naming the one
        that cannot be used."""
        found = []
        for one in read(self.task, self.samples, job):
            pixels = [image_hash(image) for image in one.images]
            found.append(
                (ask.extent(self.task, one), self._key(one, pixels), replace(one, images=()), pixels)
            )
        return found

    def _key(self, sample: Sample, pixels: list[str]) -> str:
        question = self.task.question(sample, training=False)
        try:
            prompt = self.family.prompt(self.processor, question, len(sample.images), sample.system)
        except LmmForgetError as error:
            raise type(error)(f"task {self.task.name}: sample {sample.id}: {error}") from error
        return question_key(prompt, pixels, self.task.max_new_tokens)


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
    """Batches of `size` positions, and of every sample its question's key and itself without pictures.

    Samples that show the same picture get one `image_id`, whatever their task calls them.
    """
    work = Look(lmm.family, lmm.processor, task, samples)
    chunks = [range(start, min(start + size, len(samples))) for start in range(0, len(samples), size)]
    batches: list[list[int]] = []
    keys: list[str] = []
    light: list[Sample] = []
    shown: list[list[str]] = []
    window: dict[int, tuple[Any, ...]] = {}
    todo = jobs(task, samples, chunks)
    for found in worked(work, todo, workers=_enough(workers, chunks), what=f"task {task.name}"):
        for extent, key, sample, pixels in found:
            window[len(keys)] = extent
            keys.append(key)
            light.append(sample)
            shown.append(pixels)
        if len(window) >= ask.WINDOW * size:
            batches += ask.sorted_batches(window, size)
            window = {}
    ids = image_ids([sample.image_id for sample in light], shown)
    light = [replace(sample, image_id=own) for sample, own in zip(light, ids, strict=True)]
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
