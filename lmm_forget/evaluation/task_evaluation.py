"""Ask a model the questions of tasks, in batches, exactly."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import DataError, LmmForgetError
from lmm_forget.evaluation.prefetch import ReadRequest, is_sequential, read_requested_samples, summarize_error
from lmm_forget.evaluation.scored_answers import Answer
from lmm_forget.progress import NullProgress, Progress
from lmm_forget.tasks.task import Sample, Task
from lmm_forget.tasks.text_values import get_group_name

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import ProcessorMixin

    from lmm_forget.evaluation.generation import Generation
    from lmm_forget.models.family import Family
    from lmm_forget.models.loading import LMM
    from lmm_forget.store import CachedResponse

DEFAULT_EVAL_BATCH_SIZE = 64
SORT_WINDOW_BATCHES = 8
"""Batches whose samples are held, and sorted by length, at a time."""


def limit_samples(samples: Sequence[Sample], max_samples: int | None, task_name: str) -> Sequence[Sample]:
    """At most `limit` samples, chosen by a hash of `name` and position, in their order.

    Neither a sorted nor a periodic file biases the choice, and smaller limits nest in larger ones. Raises
    DataError unless `limit` is positive.
    """
    if max_samples is not None and max_samples < 1:
        raise DataError(
            f"task {task_name}: a limit of {max_samples} samples leaves nothing; give a positive number or null"
        )
    if max_samples is None or max_samples >= len(samples):
        return samples
    ranked = sorted(range(len(samples)), key=lambda i: hashlib.sha256(f"{task_name}/{i}".encode()).digest())
    return SampleSubset(samples, sorted(ranked[:max_samples]))


class SampleSubset(Sequence[Sample]):
    """The samples at some positions of a sequence, produced when they are read.

    `skipped` says what was left out, and why: of the sequence, and `left_out` beside it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        positions: Sequence[int],
        skip_reasons: Mapping[str, str] | None = None,
    ) -> None:
        self.samples = samples
        self.positions = positions
        self.skipped = {**getattr(samples, "skipped", {}), **(skip_reasons or {})}
        self.is_sequential = is_sequential(samples)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return SampleSubset(self.samples, self.positions[index])
        return self.samples[self.positions[index]]

    def read_stored_row(self, index: int) -> Any:
        """The stored row of a sample in a stream; see `HubSamples.stored`."""
        return self.samples.read_stored_row(self.positions[index])  # type: ignore[attr-defined]

    def decode_sample(self, stored_row: Any) -> Sample:
        """The sample of a stored row."""
        return self.samples.decode_sample(stored_row)  # type: ignore[attr-defined, no-any-return]

    def peek_sample(self, index: int) -> tuple[Sample, list[tuple[int, int]]]:
        """A sample without its pictures, and their sizes; see `lengths.glance`."""
        from lmm_forget.evaluation.token_lengths import peek_sample

        return peek_sample(self.samples, self.positions[index])


def evaluate_tasks(
    lmm: LMM,
    tasks: Sequence[Task],
    split: str = "test",
    *,
    max_samples: int | None = None,
    hardware_config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Task, list[Answer]]]:
    """Ask every task's questions of a split; yields each task with its answers, in the samples' order.

    One progress phase covers all of it. Batches never mix tasks, so that a task's answers do not depend on
    what else is asked. `limit` bounds the samples per task, see `subset`; `hardware["eval_batch_size"]` is the
    batch size.
    """
    task_samples = [(task, limit_samples(task.load_samples(split), max_samples, task.name)) for task in tasks]
    progress = progress or NullProgress()
    progress.start_phase("evaluate", sum(len(samples) for _, samples in task_samples), "question")
    for task, samples in task_samples:
        yield task, evaluate_task(lmm, task, samples, hardware_config=hardware_config, progress=progress)


def evaluate_task(
    lmm: LMM,
    task: Task,
    samples: Sequence[Sample],
    *,
    hardware_config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[Answer]:
    """Ask one task's questions; answers come back in the samples' order.

    `progress` is advanced once per batch (the phase is the caller's). Any failure raises an LmmForgetError
    that names the task and the samples: a question that could not be asked never becomes an empty answer.
    """
    progress = progress or NullProgress()
    answers_by_position: dict[int, Answer] = {}
    for batch in make_length_sorted_batches(task, samples, get_eval_batch_size(hardware_config)):
        batch_samples = list(batch.values())
        for position, sample, generation in zip(
            batch, batch_samples, generate_for_samples(lmm, task, batch_samples), strict=True
        ):
            answers_by_position[position] = score_generation(task, sample, generation)
        progress.advance(len(batch), task=task.name)
    return [answers_by_position[i] for i in range(len(samples))]


def get_eval_batch_size(hardware_config: Mapping[str, Any] | None) -> int:
    """Questions per generate call."""
    return int((hardware_config or {}).get("eval_batch_size") or DEFAULT_EVAL_BATCH_SIZE)


def make_length_sorted_batches(task: Task, samples: Sequence[Sample], batch_size: int) -> Iterator[dict[int, Sample]]:
    """All samples, `size` at a time, by position: alike in length and image size, so that little is padding."""
    for start in range(0, len(samples), SORT_WINDOW_BATCHES * batch_size):
        positions = range(start, min(start + SORT_WINDOW_BATCHES * batch_size, len(samples)))
        window = dict(zip(positions, read_requested_samples(task, samples, ReadRequest(positions)), strict=True))
        for batch in split_sorted_batches(
            {i: get_batch_sort_key(task, sample) for i, sample in window.items()}, batch_size
        ):
            yield {i: window[i] for i in batch}


def split_sorted_batches(sort_keys: Mapping[int, tuple[Any, ...]], batch_size: int) -> Iterator[list[int]]:
    """The positions of a window, `size` at a time, in the order of their `extent`."""
    order = sorted(sort_keys, key=sort_keys.__getitem__)
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


def get_batch_sort_key(task: Task, sample: Sample) -> tuple[Any, ...]:
    """What batches are sorted by: sizes of the pictures, length of the question and its system prompt, id."""
    return (
        sorted(image.size for image in sample.images),
        len(task.format_question(sample, for_training=False)) + len(sample.system or ""),
        sample.id,
    )


def generate_for_samples(lmm: LMM, task: Task, samples: Sequence[Sample]) -> list[Generation]:
    """What the model says to one batch of questions. Raises LmmForgetError naming task and samples."""
    return generate_for_batch(lmm, task, encode_question_batch(lmm.family, lmm.processor, task, samples))


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of questions as the model reads them, and whose they are."""

    sample_ids: tuple[str, ...]
    inputs: dict[str, Tensor]


def encode_question_batch(
    family: Family, processor: ProcessorMixin, task: Task, samples: Sequence[Sample]
) -> EncodedBatch:
    """One batch of questions, encoded. Raises LmmForgetError naming task and samples."""
    from lmm_forget.evaluation.generation import encode_prompts

    sample_ids = tuple(sample.id for sample in samples)
    with add_error_context(task, sample_ids):
        questions = [task.format_question(sample, for_training=False) for sample in samples]
        images = [sample.images for sample in samples]
        system_prompts = [sample.system for sample in samples]
        return EncodedBatch(
            sample_ids,
            encode_prompts(family, processor, questions, images, task.max_new_tokens, system_prompts),
        )


def generate_for_batch(lmm: LMM, task: Task, batch: EncodedBatch) -> list[Generation]:
    """What the model says to one encoded batch. Raises LmmForgetError naming task and samples."""
    from lmm_forget.evaluation.generation import generate_from_inputs

    with add_error_context(task, batch.sample_ids):
        return generate_from_inputs(lmm, batch.inputs, task.max_new_tokens)


@contextmanager
def add_error_context(task: Task, sample_ids: Sequence[str]) -> Iterator[None]:
    """Say of any failure in the block which task and samples it concerns; it becomes an LmmForgetError."""
    try:
        yield
    except LmmForgetError as error:
        text = re.sub(r"sample (\d+) of the batch", lambda m: f"sample {sample_ids[int(m[1])]}", str(error))
        raise type(error)(f"task {task.name}: {text}") from error
    except Exception as error:
        first = ", ".join(sample_ids[:3]) + (" …" if len(sample_ids) > 3 else "")
        raise LmmForgetError(
            f"task {task.name}: asking {len(sample_ids)} samples ({first}) failed: {summarize_error(error)}"
        ) from error


def score_generation(task: Task, sample: Sample, generation: Generation | CachedResponse) -> Answer:
    """Score what was said to a sample's question (its images are not looked at)."""
    scores = task.score_answer(generation.text, sample)
    return Answer(
        task=task.name,
        sample_id=sample.id,
        image_id=sample.image_id,
        question=task.format_display_prompt(sample, for_training=False),
        references=sample.answers,
        text=generation.text,
        value=_get_strict_score(task, sample, scores),
        tolerant=scores.get("tolerant"),
        compat=scores.get("compat"),
        group=_get_macro_group(task, sample),
        tokens=generation.tokens,
        logit_margin=generation.logit_margin,
    )


def _get_strict_score(task: Task, sample: Sample, scores: Mapping[str, float | None]) -> float:
    strict_score = scores.get("value")
    other_scores = [scores.get(name) for name in ("tolerant", "compat")]
    for score in (strict_score, *(other for other in other_scores if other is not None)):
        if score is None or not 0.0 <= score <= 1.0:
            raise DataError(f"task {task.name}: the scorer gave {score} for sample {sample.id}, not a number in 0..1")
    assert strict_score is not None
    return strict_score


def _get_macro_group(task: Task, sample: Sample) -> str | None:
    if task.macro is None:
        return None
    if task.macro not in sample.meta:
        raise DataError(f"task {task.name}: sample {sample.id} has no {task.macro!r}, which its macro mean needs")
    return get_group_name(sample.meta[task.macro])
