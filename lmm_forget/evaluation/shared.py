"""Ask every question once per model, whoever needs the answer: jobs of a sweep share them through the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import ConfigError
from lmm_forget.evaluation.answers import Answer
from lmm_forget.evaluation.ask import answer_batch, batch_size, mark, subset
from lmm_forget.evaluation.preparing import encoded, looked_at
from lmm_forget.progress import Progress
from lmm_forget.stopping import at_safe_points, safe_point
from lmm_forget.store import Kept, Said, Store
from lmm_forget.store.keys import digest
from lmm_forget.tasks.base import Sample, Task

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM

POLL_SECONDS = 0.2


@dataclass
class Exam:
    """One task with the samples it is asked, and, once prepared, its batches and the keys of its questions."""

    task: Task
    samples: Sequence[Sample]
    split: str = "test"
    batches: list[list[int]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    light: list[Sample] = field(default_factory=list)
    """The samples without their images: all that scoring needs."""

    @classmethod
    def of(cls, task: Task, split: str, limit: int | None, on_bad_sample: str) -> Exam:
        """Read the split (bad samples as `on_bad_sample` says) and keep at most `limit` of it. Raises DataError."""
        return cls(task, subset(task.check(split, on_bad_sample), limit, task.name), split)

    def prepare(self, lmm: LMM, size: int, workers: int = 0) -> None:
        """Fix the batches and look at every question once; later models are asked the same ones."""
        if not self.batches and len(self.samples):
            self.batches, self.keys, self.light = looked_at(lmm, self.task, self.samples, size, workers)

    def missing(self, found: Mapping[str, Kept]) -> int:
        """How many questions nobody has asked yet."""
        return sum(key not in found for key in self.keys)

    def unasked(self, found: Mapping[str, Kept]) -> list[list[int]]:
        """The batches without the questions that are answered, or will be when a batch's turn comes."""
        known, left = set(found), []
        for batch in self.batches:
            places = [i for i in batch if self.keys[i] not in known]
            known.update(self.keys[i] for i in places)
            if places:
                left.append(places)
        return left


def require_compat(exams: Sequence[Exam]) -> None:
    """Raise ConfigError for tasks whose scorer follows no public code, so that they have no compat score."""
    lacking = [exam.task.name for exam in exams if getattr(exam.task.scorer, "compat", None) is None]
    if lacking:
        raise ConfigError(
            f"data.scoring=compat: there is no compat score of {', '.join(lacking)}; name a rule in the task's "
            "scorer (compat: paper.mmstar and the like) or use data.scoring=strict"
        )


def examine(
    lmm: LMM,
    model: str,
    exams: Sequence[Exam],
    store: Store,
    *,
    ready: Callable[[], None] | None = None,
    hardware: Mapping[str, Any],
    progress: Progress,
    phase: str,
) -> tuple[dict[str, list[Answer]], int]:
    """Answers to all exams by task name, and how many questions had to be asked for them now.

    `model` is the answering key of `lmm` as it stands. What the store has is taken from there; every batch is filed
    as soon as it is answered. While another job asks one task, this one asks the next. `ready` is called before the
    first question, so that a model of which everything is known need not be put together.
    """
    said = Said(store, model)
    size, workers = batch_size(hardware), int(hardware.get("workers") or 0)
    for exam in exams:
        exam.prepare(lmm, size, workers)
    found = said.refresh()
    left = [exam for exam in exams if exam.missing(found)]
    asked = 0
    progress.phase(phase, sum(exam.missing(found) for exam in left), "question")
    while left:
        others: list[Exam] = []
        for exam in left:
            before = exam.missing(found)
            with store.claim(f"answers-{digest([model, exam.keys])}", wait=False) as held:
                found = said.refresh()
                progress.advance(
                    before - exam.missing(found), task=exam.task.name
                )  # asked by another job meanwhile
                if not held and exam.missing(found):
                    others.append(exam)
                    continue
                if ready is not None and exam.missing(found):
                    ready()
                with at_safe_points():
                    asked += _ask(lmm, exam, said, found, progress, workers)
        if len(others) == len(left):
            time.sleep(POLL_SECONDS)
        left = others
    return {
        exam.task.name: [
            mark(exam.task, sample, found[key]) for sample, key in zip(exam.light, exam.keys, strict=True)
        ]
        for exam in exams
    }, asked


def _ask(
    lmm: LMM, exam: Exam, said: Said, found: Mapping[str, Kept], progress: Progress, workers: int
) -> int:
    """Ask what is missing, batch by batch; returns how many questions that were."""
    asked = 0
    safe_point()
    with closing(encoded(lmm, exam.task, exam.samples, exam.unasked(found), workers)) as ready:
        for places, batch in ready:
            answers = answer_batch(lmm, exam.task, batch)
            said.add(
                {
                    exam.keys[i]: Kept(one.text, one.tokens, one.gap)
                    for i, one in zip(places, answers, strict=True)
                }
            )
            asked += len(places)
            progress.advance(len(places), task=exam.task.name)
            safe_point()
    return asked
