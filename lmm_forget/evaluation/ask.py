"""Ask a model the questions of tasks, in batches, exactly."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import DataError, LmmForgetError
from lmm_forget.evaluation.ahead import Job, cause, in_order, read
from lmm_forget.evaluation.answers import Answer
from lmm_forget.progress import NullProgress, Progress
from lmm_forget.tasks.base import Sample, Task
from lmm_forget.tasks.values import group_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import ProcessorMixin

    from lmm_forget.evaluation.generate import Said
    from lmm_forget.models.family import Family
    from lmm_forget.models.loading import LMM
    from lmm_forget.store import Kept

EVAL_BATCH = 64
WINDOW = 8
"""Batches whose samples are held, and sorted by length, at a time."""


def subset(samples: Sequence[Sample], limit: int | None, name: str) -> Sequence[Sample]:
    """At most `limit` samples, chosen by a hash of `name` and position, in their order.

    Neither a sorted nor a periodic file biases the choice, and smaller limits nest in larger ones. Raises
    DataError unless `limit` is positive.
    """
    if limit is not None and limit < 1:
        raise DataError(
            f"task {name}: a limit of {limit} samples leaves nothing; give a positive number or null"
        )
    if limit is None or limit >= len(samples):
        return samples
    ranked = sorted(range(len(samples)), key=lambda i: hashlib.sha256(f"{name}/{i}".encode()).digest())
    return Chosen(samples, sorted(ranked[:limit]))


class Chosen(Sequence[Sample]):
    """The samples at some positions of a sequence, produced when they are read.

    `skipped` says what was left out, and why: of the sequence, and `left_out` beside it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        positions: Sequence[int],
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        self.samples = samples
        self.positions = positions
        self.skipped = {**getattr(samples, "skipped", {}), **(left_out or {})}
        self.in_order = in_order(samples)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Chosen(self.samples, self.positions[index])
        return self.samples[self.positions[index]]

    def stored(self, index: int) -> Any:
        """The stored row of a sample in a stream; see `HubSamples.stored`."""
        return self.samples.stored(self.positions[index])  # type: ignore[attr-defined]

    def made(self, stored: Any) -> Sample:
        """The sample of a stored row."""
        return self.samples.made(stored)  # type: ignore[attr-defined, no-any-return]

    def glance(self, index: int) -> tuple[Sample, list[tuple[int, int]]]:
        """A sample without its pictures, and their sizes; see `lengths.glance`."""
        from lmm_forget.evaluation.lengths import glance

        return glance(self.samples, self.positions[index])


def ask(
    lmm: LMM,
    tasks: Sequence[Task],
    split: str = "test",
    *,
    limit: int | None = None,
    hardware: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Task, list[Answer]]]:
    """Ask every task's questions of a split; yields each task with its answers, in the samples' order.

    One progress phase covers all of it. Batches never mix tasks, so that a task's answers do not depend on
    what else is asked. `limit` bounds the samples per task, see `subset`; `hardware["eval_batch"]` is the
    batch size.
    """
    chosen = [(task, subset(task.samples(split), limit, task.name)) for task in tasks]
    progress = progress or NullProgress()
    progress.phase("ask", sum(len(samples) for _, samples in chosen), "question")
    for task, samples in chosen:
        yield task, ask_task(lmm, task, samples, hardware=hardware, progress=progress)


def ask_task(
    lmm: LMM,
    task: Task,
    samples: Sequence[Sample],
    *,
    hardware: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[Answer]:
    """Ask one task's questions; answers come back in the samples' order.

    `progress` is advanced once per batch (the phase is the caller's). Any failure raises an LmmForgetError
    that names the task and the samples: a question that could not be asked never becomes an empty answer.
    """
    progress = progress or NullProgress()
    filled: dict[int, Answer] = {}
    for batch in batches(task, samples, batch_size(hardware)):
        chosen = list(batch.values())
        for place, sample, said in zip(batch, chosen, ask_batch(lmm, task, chosen), strict=True):
            filled[place] = mark(task, sample, said)
        progress.advance(len(batch), task=task.name)
    return [filled[i] for i in range(len(samples))]


def batch_size(hardware: Mapping[str, Any] | None) -> int:
    """Questions per generate call."""
    return int((hardware or {}).get("eval_batch") or EVAL_BATCH)


def batches(task: Task, samples: Sequence[Sample], size: int) -> Iterator[dict[int, Sample]]:
    """All samples, `size` at a time, by position: alike in length and image size, so that little is padding."""
    for start in range(0, len(samples), WINDOW * size):
        places = range(start, min(start + WINDOW * size, len(samples)))
        window = dict(zip(places, read(task, samples, Job(places)), strict=True))
        for batch in sorted_batches({i: extent(task, sample) for i, sample in window.items()}, size):
            yield {i: window[i] for i in batch}


def sorted_batches(window: Mapping[int, tuple[Any, ...]], size: int) -> Iterator[list[int]]:
    """The positions of a window, `size` at a time, in the order of their `extent`."""
    order = sorted(window, key=window.__getitem__)
    for first in range(0, len(order), size):
        yield order[first : first + size]


def extent(task: Task, sample: Sample) -> tuple[Any, ...]:
    """What batches are sorted by: sizes of the pictures, length of the question and its system prompt, id."""
    return (
        sorted(image.size for image in sample.images),
        len(task.question(sample, training=False)) + len(sample.system or ""),
        sample.id,
    )


def ask_batch(lmm: LMM, task: Task, samples: Sequence[Sample]) -> list[Said]:
    """What the model says to one batch of questions. Raises LmmForgetError naming task and samples."""
    return answer_batch(lmm, task, encode_batch(lmm.family, lmm.processor, task, samples))


@dataclass(frozen=True)
class Ready:
    """A batch of questions as the model reads them, and whose they are."""

    ids: tuple[str, ...]
    batch: dict[str, Tensor]


def encode_batch(family: Family, processor: ProcessorMixin, task: Task, samples: Sequence[Sample]) -> Ready:
    """One batch of questions, encoded. Raises LmmForgetError naming task and samples."""
    from lmm_forget.evaluation.generate import prompts

    ids = tuple(sample.id for sample in samples)
    with naming(task, ids):
        questions = [task.question(sample, training=False) for sample in samples]
        images = [sample.images for sample in samples]
        systems = [sample.system for sample in samples]
        return Ready(ids, prompts(family, processor, questions, images, task.max_new_tokens, systems))


def answer_batch(lmm: LMM, task: Task, ready: Ready) -> list[Said]:
    """What the model says to one encoded batch. Raises LmmForgetError naming task and samples."""
    from lmm_forget.evaluation.generate import answer

    with naming(task, ready.ids):
        return answer(lmm, ready.batch, task.max_new_tokens)


@contextmanager
def naming(task: Task, ids: Sequence[str]) -> Iterator[None]:
    """Say of any failure in the block which task and samples it concerns; it becomes an LmmForgetError."""
    try:
        yield
    except LmmForgetError as error:
        text = re.sub(r"sample (\d+) of the batch", lambda m: f"sample {ids[int(m[1])]}", str(error))
        raise type(error)(f"task {task.name}: {text}") from error
    except Exception as error:
        first = ", ".join(ids[:3]) + (" …" if len(ids) > 3 else "")
        raise LmmForgetError(
            f"task {task.name}: asking {len(ids)} samples ({first}) failed: {cause(error)}"
        ) from error


def mark(task: Task, sample: Sample, said: Said | Kept) -> Answer:
    """Score what was said to a sample's question (its images are not looked at)."""
    scores = task.score(said.text, sample)
    return Answer(
        task=task.name,
        sample_id=sample.id,
        image_id=sample.image_id,
        question=task.prompt_text(sample, training=False),
        references=sample.answers,
        text=said.text,
        value=_strict(task, sample, scores),
        tolerant=scores.get("tolerant"),
        compat=scores.get("compat"),
        group=_group(task, sample),
        tokens=said.tokens,
        gap=said.gap,
    )


def _strict(task: Task, sample: Sample, scores: Mapping[str, float | None]) -> float:
    value = scores.get("value")
    others = [scores.get(name) for name in ("tolerant", "compat")]
    for given in (value, *(other for other in others if other is not None)):
        if given is None or not 0.0 <= given <= 1.0:
            raise DataError(
                f"task {task.name}: the scorer gave {given} for sample {sample.id}, not a number in 0..1"
            )
    assert value is not None
    return value


def _group(task: Task, sample: Sample) -> str | None:
    if task.macro is None:
        return None
    if task.macro not in sample.meta:
        raise DataError(
            f"task {task.name}: sample {sample.id} has no {task.macro!r}, which its macro mean needs"
        )
    return group_of(sample.meta[task.macro])
