"""Ask every question once per model, whoever needs the answers: jobs of a sweep share them through the store."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import ConfigError
from lmm_forget.evaluation.answers import Answer
from lmm_forget.evaluation.ask import ask_task, subset
from lmm_forget.evaluation.table import read_answers, write_answers
from lmm_forget.progress import Progress
from lmm_forget.store import Store, answers_key
from lmm_forget.tasks.base import Sample, Task

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Exam:
    """One task with the samples it is asked; `node` is its configuration, `data` the fingerprint of the split."""

    task: Task
    node: Mapping[str, Any]
    split: str
    limit: int | None
    samples: Sequence[Sample]
    data: str

    @classmethod
    def of(
        cls, task: Task, node: Mapping[str, Any], split: str, limit: int | None, on_bad_sample: str
    ) -> Exam:
        """Read the split (bad samples as `on_bad_sample` says) and keep at most `limit` of it. Raises DataError."""
        samples = subset(task.check(split, on_bad_sample), limit, task.name)
        return cls(task, node, split, limit, samples, task.fingerprint(split))


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
    weights: str,
    exams: Sequence[Exam],
    store: Store,
    *,
    processor: str,
    versions: Mapping[str, str],
    hardware: Mapping[str, Any],
    progress: Progress,
    phase: str,
) -> dict[str, list[Answer]]:
    """Answers to all exams by task name, from the store where they lie there, else asked now and filed.

    `weights` is the hash of `lmm`'s weights. While another job asks one task, this one asks the next.
    """
    keys = {
        exam.task.name: answers_key(
            weights,
            exam.node,
            split=exam.split,
            limit=exam.limit,
            data=exam.data,
            processor=processor,
            model=lmm.spec,
            versions=versions,
        )
        for exam in exams
    }
    found: dict[str, list[Answer]] = {}
    open_exams = [exam for exam in exams if not _filed(store, keys[exam.task.name], exam.task.name, found)]
    progress.phase(phase, sum(len(exam.samples) for exam in open_exams), "question")
    while open_exams:
        left: list[Exam] = []
        for exam in open_exams:
            name, key = exam.task.name, keys[exam.task.name]
            with store.claim(f"answers-{key}", wait=False) as held:
                if _filed(store, key, name, found):
                    progress.advance(len(exam.samples), task=name)
                elif held:
                    found[name] = ask_task(lmm, exam.task, exam.samples, hardware=hardware, progress=progress)
                    write_answers(found[name], store.answers(key))
                else:
                    left.append(exam)
        if len(left) == len(open_exams):
            time.sleep(POLL_SECONDS)
        open_exams = left
    return {exam.task.name: found[exam.task.name] for exam in exams}


def _filed(store: Store, key: str, name: str, found: dict[str, list[Answer]]) -> bool:
    """Whether the store has the answers; they are then put into `found`."""
    path = store.answers(key)
    if not path.exists():
        return False
    found[name] = read_answers(path)
    return True
