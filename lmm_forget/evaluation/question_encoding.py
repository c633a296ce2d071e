"""The two passes over an exam's samples: look at every question once; then encode, batch by batch, what is asked."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import LmmForgetError
from lmm_forget.evaluation import task_evaluation
from lmm_forget.evaluation.prefetch import (
    ReadRequest,
    make_read_requests,
    prefetch_results,
    read_requested_samples,
)
from lmm_forget.store import compute_question_key
from lmm_forget.tasks.image_clusters import merge_image_ids
from lmm_forget.tasks.images import hash_pixels
from lmm_forget.tasks.task import Sample, Task

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from lmm_forget.models.family import Family
    from lmm_forget.models.loading import LMM


@dataclass(frozen=True)
class QuestionIndexer:
    """Reads the samples of a job and keeps of each its extent, its question's key and itself without pictures."""

    family: Family
    processor: ProcessorMixin
    task: Task
    samples: Sequence[Sample]

    def __call__(self, request: ReadRequest) -> list[tuple[tuple[Any, ...], str, Sample, list[str]]]:
        """One entry for every sample of the job, its pictures' digests last. Raises LmmForgetError naming the one
        that cannot be used."""
        entries = []
        for sample in read_requested_samples(self.task, self.samples, request):
            image_hashes = [hash_pixels(image) for image in sample.images]
            entries.append(
                (
                    task_evaluation.get_batch_sort_key(self.task, sample),
                    self._make_question_key(sample, image_hashes),
                    replace(sample, images=()),
                    image_hashes,
                )
            )
        return entries

    def _make_question_key(self, sample: Sample, image_hashes: list[str]) -> str:
        question = self.task.format_question(sample, for_training=False)
        try:
            prompt = self.family.render_prompt(self.processor, question, len(sample.images), sample.system)
        except LmmForgetError as error:
            raise type(error)(f"task {self.task.name}: sample {sample.id}: {error}") from error
        return compute_question_key(prompt, image_hashes, self.task.max_new_tokens)


@dataclass(frozen=True)
class QuestionBatchEncoder:
    """Reads the samples of a job and encodes their questions as one batch."""

    family: Family
    processor: ProcessorMixin
    task: Task
    samples: Sequence[Sample]

    def __call__(self, request: ReadRequest) -> tuple[Sequence[int], task_evaluation.EncodedBatch]:
        """The job's positions, and the batch. Raises LmmForgetError naming the sample that cannot be used."""
        samples = read_requested_samples(self.task, self.samples, request)
        return request.positions, task_evaluation.encode_question_batch(self.family, self.processor, self.task, samples)


def index_questions(
    lmm: LMM, task: Task, samples: Sequence[Sample], batch_size: int, num_workers: int
) -> tuple[list[list[int]], list[str], list[Sample]]:
    """Batches of `size` positions, and of every sample its question's key and itself without pictures.

    Samples that show the same picture get one `image_id`, whatever their task calls them.
    """
    indexer = QuestionIndexer(lmm.family, lmm.processor, task, samples)
    position_ranges = [
        range(start, min(start + batch_size, len(samples))) for start in range(0, len(samples), batch_size)
    ]
    batches: list[list[int]] = []
    keys: list[str] = []
    samples_without_images: list[Sample] = []
    image_hashes: list[list[str]] = []
    sort_keys: dict[int, tuple[Any, ...]] = {}
    requests = make_read_requests(task, samples, position_ranges)
    for entries in prefetch_results(
        indexer,
        requests,
        num_workers=_limit_workers(num_workers, position_ranges),
        description=f"task {task.name}",
    ):
        for sort_key, key, sample, sample_hashes in entries:
            sort_keys[len(keys)] = sort_key
            keys.append(key)
            samples_without_images.append(sample)
            image_hashes.append(sample_hashes)
        if len(sort_keys) >= task_evaluation.SORT_WINDOW_BATCHES * batch_size:
            batches += task_evaluation.split_sorted_batches(sort_keys, batch_size)
            sort_keys = {}
    ids = merge_image_ids([sample.image_id for sample in samples_without_images], image_hashes)
    samples_without_images = [
        replace(sample, image_id=image_id) for sample, image_id in zip(samples_without_images, ids, strict=True)
    ]
    return (
        [*batches, *task_evaluation.split_sorted_batches(sort_keys, batch_size)],
        keys,
        samples_without_images,
    )


def encode_question_batches(
    lmm: LMM, task: Task, samples: Sequence[Sample], batches: Sequence[Sequence[int]], num_workers: int
) -> Generator[tuple[Sequence[int], task_evaluation.EncodedBatch], None, None]:
    """Every batch with its questions encoded, in order, read ahead by `workers` processes."""
    encoder = QuestionBatchEncoder(lmm.family, lmm.processor, task, samples)
    requests = make_read_requests(task, samples, batches)
    return prefetch_results(
        encoder, requests, num_workers=_limit_workers(num_workers, batches), description=f"task {task.name}"
    )


def _limit_workers(num_workers: int, batches: Sequence[Sequence[int]]) -> int:
    """No more processes than there are batches, and none for a single one."""
    return min(num_workers, len(batches)) if len(batches) > 1 else 0
