"""Ask every question once per model, whoever needs the answer: jobs of a sweep share them through the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from lmm_forget.distributed.process_group import ALONE, Ranks
from lmm_forget.distributed.stop_signals import Interrupted, at_safe_points, safe_point
from lmm_forget.distributed.stop_signals import asked as stop_asked
from lmm_forget.errors import ConfigError
from lmm_forget.evaluation.answers import Answer
from lmm_forget.evaluation.ask import answer_batch, batch_size, mark, subset
from lmm_forget.evaluation.preparing import encoded, looked_at
from lmm_forget.progress import Progress
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
    ranks: Ranks = ALONE,
) -> tuple[dict[str, list[Answer]], int]:
    """Answers to all exams by task name, and how many questions had to be asked for them now.

    `model` is the answering key of `lmm` as it stands. What the store has is taken from there; every batch is filed
    as soon as it is answered. While another job asks one task, this one asks the next. `ready` is called before the
    first question, so that a model of which everything is known need not be put together.

    Several `ranks` deal out the batches, which are those of one process; the first rank alone reads and writes the
    store, and afterwards every rank has all answers.
    """
    said = Said(store, model)
    size, workers = batch_size(hardware), int(hardware.get("workers") or 0)
    for exam in exams:
        exam.prepare(lmm, size, workers)
    found = _known(said, exams, ranks)
    left = [exam for exam in exams if exam.missing(found)]
    asked = 0
    progress.phase(phase, sum(exam.missing(found) for exam in left), "question")
    while left:
        others: list[Exam] = []
        for exam in left:
            before = exam.missing(found)
            with _claim(store, f"answers-{digest([model, exam.keys])}", ranks) as held:
                found = _known(said, [exam], ranks, found)
                progress.advance(
                    before - exam.missing(found), task=exam.task.name
                )  # asked by another job meanwhile
                if not held and exam.missing(found):
                    others.append(exam)
                    continue
                if ready is not None and exam.missing(found):
                    ready()
                with at_safe_points():
                    asked += _ask(lmm, exam, said, found, progress, ranks, workers)
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
    lmm: LMM,
    exam: Exam,
    said: Said,
    found: dict[str, Kept],
    progress: Progress,
    ranks: Ranks,
    workers: int,
) -> int:
    """Ask what is missing, a batch per rank at a time; adds to `found`, returns how many questions that were.

    Neighbouring batches are alike in length, so that ranks that ask one each wait little for one another.
    """
    asked = 0
    safe_point()
    batches = exam.unasked(found)
    with closing(encoded(lmm, exam.task, exam.samples, batches[ranks.rank :: ranks.size], workers)) as ready:
        for _ in range(0, len(batches), ranks.size):
            own: dict[str, Kept] = {}
            for places, batch in islice(ready, 1):  # none where only the others have one more
                answers = answer_batch(lmm, exam.task, batch)
                for i, one in zip(places, answers, strict=True):
                    own[exam.keys[i]] = Kept(one.text, one.tokens, one.gap)
            for said_by_one in ranks.gather(own):
                if said_by_one and ranks.first:
                    said.add(said_by_one)
                found.update(said_by_one)
                asked += len(said_by_one)
                progress.advance(len(said_by_one), task=exam.task.name)
            if ranks.any(stop_asked()):
                raise Interrupted
    return asked


def _known(
    said: Said, exams: Sequence[Exam], ranks: Ranks, before: dict[str, Kept] | None = None
) -> dict[str, Kept]:
    """What the store has of these exams, beside what was known `before`; the same on all ranks."""
    wanted = {key for exam in exams for key in exam.keys}

    def read() -> dict[str, Kept]:
        found = said.refresh()
        return {key: found[key] for key in wanted if key in found}

    return {**(before or {}), **ranks.on_first(read)}


@contextmanager
def _claim(store: Store, name: str, ranks: Ranks) -> Iterator[bool]:
    """Try to be the one who does this; the first rank claims for all of them."""
    with store.claim(name, wait=False) if ranks.first else nullcontext(False) as held:
        yield ranks.on_first(lambda: held)
