"""The base and each stage as a tracker hears of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmm_forget.experiment.results import Answers, score
from lmm_forget.experiment.stage import Ground, Taught
from lmm_forget.tracking.tracker import Measured

if TYPE_CHECKING:
    from lmm_forget.probes.prober import Look


def measured_base(ground: Ground, answers: Answers, seconds: float, look: Look | None) -> Measured:
    """The base, with small pictures of a few samples of every task to show."""
    from lmm_forget.evaluation.ask import subset
    from lmm_forget.tracking.choosing import shown
    from lmm_forget.tracking.content import small

    number = shown(ground.config)
    few = {exam.task.name: subset(exam.samples, number, exam.task.name) for exam in ground.exams if number}
    return Measured(
        index=0,
        weights_hash=ground.weights,
        scores={
            task: score(each, ground.config["data"]["scoring"])["value"] for task, each in answers.items()
        },
        answers=answers,
        seconds={"ask": seconds},
        probes=None if look is None else {"readings": look.readings},
        pictures={
            task: {sample.id: small(sample.images) for sample in samples} for task, samples in few.items()
        },
    )


def measured_stage(ground: Ground, stage: Taught, base: Answers) -> Measured:
    """A finished stage; `base` are the answers before any stage."""
    from lmm_forget.probes.records import stage_probes
    from lmm_forget.store.archive import DELTA

    return Measured(
        index=stage.index,
        task=stage.task,
        weights_hash=stage.record["weights_hash"],
        scores={
            task: score(each, ground.config["data"]["scoring"])["value"]
            for task, each in stage.answers.items()
        },
        answers=stage.answers,
        record=stage.record,
        delta=ground.store.folder(stage.record["key"]) / DELTA,
        seconds={name: stage.effort[name] for name in ("teach", "ask", "probe") if name in stage.effort},
        trained=bool(stage.effort["trained"]),
        probes=stage_probes(base, stage),
    )
