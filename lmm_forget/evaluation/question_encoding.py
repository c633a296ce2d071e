"""The two passes over the samples of a task: index every question once, then encode batch by batch what is missing."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from PIL.Image import Image
from torch import Tensor
from transformers import ProcessorMixin

from lmm_forget.errors import DataError, LmmForgetError
from lmm_forget.evaluation.engines.base import EncodedBatch
from lmm_forget.evaluation.prefetch import (
    ReadRequest,
    make_read_requests,
    prefetch_results,
    read_requested_samples,
    summarize_error,
)
from lmm_forget.models.family import Family
from lmm_forget.models.loading import LMM
from lmm_forget.store import compute_question_key
from lmm_forget.tasks.image_clusters import merge_image_ids
from lmm_forget.tasks.images import hash_pixels
from lmm_forget.tasks.sample_set import SampleSet
from lmm_forget.tasks.task import Sample, Task

SORT_WINDOW_BATCHES = 8
"""Batches whose questions are sorted by length together."""


@dataclass(frozen=True)
class QuestionIndexer:
    """Reads the samples of a request: sort key, question key, the sample without images, hashes of the images."""

    family: Family
    processor: ProcessorMixin
    task: Task
    samples: SampleSet

    def __call__(self, request: ReadRequest) -> list[tuple[tuple[Any, ...], str, Sample, list[str]]]:
        """One entry per sample. Raises LmmForgetError naming the sample that cannot be used."""
        entries = []
        for sample in read_requested_samples(self.task, self.samples, request):
            image_hashes = [hash_pixels(image) for image in sample.images]
            entries.append(
                (
                    get_batch_sort_key(self.task, sample),
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
    """Reads the samples of a request and encodes their questions as one batch."""

    family: Family
    processor: ProcessorMixin
    task: Task
    samples: SampleSet

    def __call__(self, request: ReadRequest) -> tuple[Sequence[int], EncodedBatch]:
        """The positions, and the batch. Raises LmmForgetError naming the sample that cannot be used."""
        samples = read_requested_samples(self.task, self.samples, request)
        return request.positions, encode_question_batch(self.family, self.processor, self.task, samples)


def index_questions(
    lmm: LMM, task: Task, samples: SampleSet, batch_size: int, num_workers: int
) -> tuple[list[list[int]], list[str], list[Sample]]:
    """Batches of at most `batch_size` positions; for every sample its question key and itself without images.

    A batch holds questions that are alike in length and image size, so that little is padding. Samples that show the
    same image get one `image_id`, whatever their task calls them.
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
        if len(sort_keys) >= SORT_WINDOW_BATCHES * batch_size:
            batches += split_sorted_batches(sort_keys, batch_size)
            sort_keys = {}
    ids = merge_image_ids([sample.image_id for sample in samples_without_images], image_hashes)
    samples_without_images = [
        replace(sample, image_id=image_id) for sample, image_id in zip(samples_without_images, ids, strict=True)
    ]
    return (
        [*batches, *split_sorted_batches(sort_keys, batch_size)],
        keys,
        samples_without_images,
    )


def encode_question_batches(
    lmm: LMM, task: Task, samples: SampleSet, batches: Sequence[Sequence[int]], num_workers: int
) -> Generator[tuple[Sequence[int], EncodedBatch], None, None]:
    """Every batch with its questions encoded, in order, read ahead by `num_workers` processes."""
    encoder = QuestionBatchEncoder(lmm.family, lmm.processor, task, samples)
    requests = make_read_requests(task, samples, batches)
    return prefetch_results(
        encoder, requests, num_workers=_limit_workers(num_workers, batches), description=f"task {task.name}"
    )


def encode_question_batch(
    family: Family, processor: ProcessorMixin, task: Task, samples: Sequence[Sample]
) -> EncodedBatch:
    """One batch of questions, encoded. Raises LmmForgetError naming the task and the samples."""
    sample_ids = tuple(sample.id for sample in samples)
    with add_error_context(task, sample_ids):
        inputs = encode_prompts(
            family,
            processor,
            [task.format_question(sample, for_training=False) for sample in samples],
            [sample.images for sample in samples],
            task.max_new_tokens,
            [sample.system for sample in samples],
        )
    return EncodedBatch(sample_ids, inputs, task.max_new_tokens)


def encode_prompts(
    family: Family,
    processor: ProcessorMixin,
    questions: Sequence[str],
    images: Sequence[Sequence[Image]],
    max_new_tokens: int,
    system_prompts: Sequence[str | None] | None = None,
) -> dict[str, Tensor]:
    """Questions [B] as keyword arguments of the model. Raises DataError when one and its answer exceed the context."""
    encoded = family.encode_batch(processor, list(questions), [list(i) for i in images], systems=system_prompts)
    for i, length in enumerate(encoded.lengths):
        if length + max_new_tokens > family.context_length:
            raise DataError(
                f"sample {i} of the batch: {length} prompt tokens and {max_new_tokens} answer tokens are "
                f"more than the model's context of {family.context_length}"
            )
    return encoded.tensors


@contextmanager
def add_error_context(task: Task, sample_ids: Sequence[str]) -> Iterator[None]:
    """Name the task and the samples in any exception of the block, which becomes an LmmForgetError."""
    try:
        yield
    except LmmForgetError as error:
        text = re.sub(r"sample (\d+) of the batch", lambda m: f"sample {sample_ids[int(m[1])]}", str(error))
        raise type(error)(f"task {task.name}: {text}") from error
    except Exception as error:
        first = ", ".join(sample_ids[:3]) + (" …" if len(sample_ids) > 3 else "")
        raise LmmForgetError(
            f"task {task.name}: evaluating {len(sample_ids)} samples ({first}) failed: {summarize_error(error)}"
        ) from error


def get_batch_sort_key(task: Task, sample: Sample) -> tuple[Any, ...]:
    """What batches are sorted by: sizes of the images, length of the question and its system prompt, id."""
    return (
        sorted(image.size for image in sample.images),
        len(task.format_question(sample, for_training=False)) + len(sample.system or ""),
        sample.id,
    )


def split_sorted_batches(sort_keys: Mapping[int, tuple[Any, ...]], batch_size: int) -> Iterator[list[int]]:
    """The positions of a window, `batch_size` at a time, in the order of their sort keys."""
    order = sorted(sort_keys, key=sort_keys.__getitem__)
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


def _limit_workers(num_workers: int, batches: Sequence[Sequence[int]]) -> int:
    """No more processes than there are batches, and none for a single one."""
    return min(num_workers, len(batches)) if len(batches) > 1 else 0
