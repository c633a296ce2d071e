"""The corridor: base evaluation, stage 1 … stage n, results. Read from top to bottom."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from lmm_forget.progress import Progress
from lmm_forget.results import Answers, assemble, score, write_tables
from lmm_forget.stage import Ground, Taught, ask_all, run_stage
from lmm_forget.tracking.tracker import Measured, Tracker

MOST_REPAIRS = 100
"""Damaged things that one job puts up with before it gives up on its store."""


def run(config: dict[str, Any], job_dir: Path, progress: Progress) -> dict[str, Any]:
    """Carry out one resolved job and return its results (see docs/results_schema.md).

    Beside the results, the job folder gets answers.parquet, training curves and pictures. Everything that was
    finished before, by this job or by another one with the same store, is taken from there; what is found damaged there
    is moved aside, named, and computed again.
    """
    from lmm_forget.store import Damaged
    from lmm_forget.tracking import open_tracker

    repairs: list[str] = []
    tracker = open_tracker(config, job_dir)  # first, so that whatever goes wrong is seen there too
    try:
        while True:
            try:
                results = _corridor(config, job_dir, progress, repairs, tracker)
                break
            except Damaged as error:
                if len(repairs) > MOST_REPAIRS:
                    raise
                progress.phase(f"computing again: {error}", 0, "stage")
    except BaseException as error:
        tracker.close(error)
        raise
    tracker.results(results)
    notices = tracker.close()
    if notices:
        results["job"]["notices"] = notices
    return results


def _corridor(
    config: dict[str, Any], job_dir: Path, progress: Progress, repairs: list[str], tracker: Tracker
) -> dict[str, Any]:
    started = time.monotonic()
    ground = lay_ground(config, job_dir, progress, repairs, tracker)
    base, asked = ask_all(ground, "base: ask everything")
    base_hash, base_seconds = ground.weights, time.monotonic() - started
    tracker.stage(_base(ground, base, base_seconds))
    stages = []
    for index, task in enumerate(config["sequence"]["tasks"], start=1):
        stages.append(run_stage(ground, index, task))
        tracker.stage(_after(ground, stages[-1]))
    progress.phase("figures of merit", 1, "job")
    results = assemble(ground, base_hash, base, stages)
    results["job"]["repairs"] = repairs
    results["timings"].update(base=base_seconds, base_asked=asked, total=time.monotonic() - started)
    write_tables(job_dir, base, stages, results)
    return results


def _base(ground: Ground, answers: Answers, seconds: float) -> Measured:
    """The base as a tracker hears of it, with a few samples of every task to show."""
    from lmm_forget.evaluation.ask import subset
    from lmm_forget.tracking.choosing import shown
    from lmm_forget.tracking.content import small

    number = shown(ground.config)
    few = {exam.task.name: subset(exam.samples, number, exam.task.name) for exam in ground.exams if number}
    return Measured(
        index=0,
        weights_hash=ground.weights,
        scores={task: score(each)["value"] for task, each in answers.items()},
        answers=answers,
        seconds={"ask": seconds},
        pictures={
            task: {sample.id: small(sample.images) for sample in samples} for task, samples in few.items()
        },
    )


def _after(ground: Ground, stage: Taught) -> Measured:
    """A finished stage as a tracker hears of it."""
    from lmm_forget.store.archive import DELTA

    return Measured(
        index=stage.index,
        task=stage.task,
        weights_hash=stage.record["weights_hash"],
        scores={task: score(each)["value"] for task, each in stage.answers.items()},
        answers=stage.answers,
        record=stage.record,
        delta=ground.store.folder(stage.record["key"]) / DELTA,
        seconds={part: stage.effort[part] for part in ("teach", "ask")},
        trained=bool(stage.effort["trained"]),
    )


def lay_ground(
    config: dict[str, Any],
    job_dir: Path,
    progress: Progress,
    repairs: list[str],
    tracker: Tracker | None = None,
) -> Ground:
    """Load the model, fix the plan, read every sample once: whatever can be wrong is said before the first step."""
    from hydra.utils import instantiate

    from lmm_forget.evaluation.ask import subset
    from lmm_forget.evaluation.shared import Exam
    from lmm_forget.models.fingerprint import processor_fingerprint
    from lmm_forget.models.loading import load
    from lmm_forget.models.weights import model_hashes
    from lmm_forget.recipes.selection import make_plan, rules_from_config
    from lmm_forget.results import versions
    from lmm_forget.store import Store
    from lmm_forget.tasks.loading import build_task
    from lmm_forget.training.fit import total_steps
    from lmm_forget.training.lessons import Lessons
    from lmm_forget.training.precision import refuse_pure_bf16

    recipe, data, training = config["recipe"], config["data"], config["training"]
    refuse_pure_bf16(training, config["hardware"])
    progress.phase("read data", len(config["tasks"]), "task")
    lessons, exams = {}, []
    for name, node in config["tasks"].items():
        task = build_task(node)
        if name in config["sequence"]["tasks"]:
            samples = subset(task.check("train", data["on_bad_sample"]), data["train_samples"], name)
            total_steps(len(samples), training, seed=config["seed"], task=name)
            lessons[name] = Lessons(task, samples)
        split = "validation" if data["validation"] and name in lessons else "test"
        exams.append(Exam.of(task, split, data["eval_samples"], data["on_bad_sample"]))
        progress.advance(1, task=name)

    progress.phase("load model", 1, "model")
    lmm = load(config["model"])
    if config["hardware"]["accelerator"] in ("gpu", "cuda"):
        lmm.model.to("cuda")
    plan = make_plan(lmm.components, recipe["name"], rules_from_config(recipe))

    def note(line: str) -> None:
        repairs.append(line)
        print(f"lmm-forget: note: {line}", file=sys.stderr, flush=True)

    return Ground(
        config=config,
        job_dir=job_dir,
        lmm=lmm,
        plan=plan,
        method=instantiate(recipe["method"]),
        lessons=lessons,
        exams=exams,
        store=Store(config["store"], note),
        progress=progress,
        logger=tracker,
        processor=processor_fingerprint(lmm.processor),
        versions=versions(),
        hashes=model_hashes(lmm.model),
    )
