"""Ask a model the questions of tasks, in batches, exactly."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import DataError, LmmForgetError
from lmm_forget.evaluation.answers import Answer
from lmm_forget.progress import NullProgress, Progress
from lmm_forget.tasks.base import Sample, Task

if TYPE_CHECKING:
    from lmm_forget.evaluation.generate import Said
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
    """The samples at some positions of a sequence, produced when they are read."""

    def __init__(self, samples: Sequence[Sample], positions: Sequence[int]) -> None:
        self.samples = samples
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Chosen(self.samples, self.positions[index])
        return self.samples[self.positions[index]]


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
        window = {
            i: _sample(task, samples, i) for i in range(start, min(start + WINDOW * size, len(samples)))
        }
        order = sorted(window, key=lambda i: _length(task, window[i]))
        for first in range(0, len(order), size):
            yield {i: window[i] for i in order[first : first + size]}


def _sample(task: Task, samples: Sequence[Sample], index: int) -> Sample:
    try:
        return samples[index]
    except LmmForgetError:
        raise
    except Exception as error:
        raise DataError(f"task {task.name}: sample number {index} cannot be read: {_cause(error)}") from error


def _length(task: Task, sample: Sample) -> tuple[Any, ...]:
    return (
        sorted(image.size for image in sample.images),
        len(task.question(sample, training=False)),
        sample.id,
    )


def ask_batch(lmm: LMM, task: Task, samples: Sequence[Sample]) -> list[Said]:
    """What the model says to one batch of questions. Raises LmmForgetError naming task and samples."""
    from lmm_forget.evaluation.generate import generate

    questions = [task.question(sample, training=False) for sample in samples]
    try:
        return generate(lmm, questions, [sample.images for sample in samples], task.max_new_tokens)
    except LmmForgetError as error:
        text = re.sub(r"sample (\d+) of the batch", lambda m: f"sample {samples[int(m[1])].id}", str(error))
        raise type(error)(f"task {task.name}: {text}") from error
    except Exception as error:
        ids = ", ".join(sample.id for sample in samples[:3]) + (" …" if len(samples) > 3 else "")
        raise LmmForgetError(
            f"task {task.name}: asking {len(samples)} samples ({ids}) failed: {_cause(error)}"
        ) from error


def mark(task: Task, sample: Sample, said: Said | Kept) -> Answer:
    """Score what was said to a sample's question (its images are not looked at)."""
    scores = task.score(said.text, sample)
    return Answer(
        task=task.name,
        sample_id=sample.id,
        image_id=sample.image_id,
        question=task.question(sample, training=False),
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
    return str(sample.meta[task.macro])


def _cause(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
