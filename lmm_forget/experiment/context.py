"""What a job stands on, laid before anything is computed: data, model, plan, method, store, probes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.distributed.process_group import ALONE, Ranks
from lmm_forget.errors import brief
from lmm_forget.experiment.stage import Ground
from lmm_forget.progress import Progress
from lmm_forget.tracking.tracker import Tracker

if TYPE_CHECKING:
    from lmm_forget.evaluation.lengths import Fit
    from lmm_forget.probes.prober import Prober

LEARNED_FROM = 256
"""Training answers of a task that its token set is learned from."""


def lay_ground(
    config: dict[str, Any],
    job_dir: Path,
    progress: Progress,
    repairs: list[str],
    tracker: Tracker | None = None,
    ranks: Ranks = ALONE,
) -> Ground:
    """Load the model, fix the plan, read every sample once: whatever can be wrong is said before the first step."""
    from lmm_forget.evaluation.ask import subset
    from lmm_forget.evaluation.shared import Exam, require_compat
    from lmm_forget.experiment.results import versions
    from lmm_forget.models.fingerprint import model_fingerprints
    from lmm_forget.models.loading import load
    from lmm_forget.models.weights import model_hashes
    from lmm_forget.recipes.method import build_method
    from lmm_forget.recipes.selection import make_plan, rules_from_config
    from lmm_forget.store import Store
    from lmm_forget.store.inputs import InputReader
    from lmm_forget.tasks.loading import build_task
    from lmm_forget.training.batches import accumulation
    from lmm_forget.training.fit import total_steps
    from lmm_forget.training.lessons import Lessons
    from lmm_forget.training.precision import refuse_pure_bf16

    notices: list[str] = []
    recipe, data, training = config["recipe"], config["data"], config["training"]
    method = build_method(recipe)
    refuse_pure_bf16(training, config["hardware"])
    hardware = config["hardware"]
    batch = int(training["global_batch"])
    share, part = max(1, batch // ranks.size), hardware["micro_batch"]
    accumulation(batch, 1 if part == "auto" else min(int(part), share), ranks.size)
    progress.phase("read data", len(config["tasks"]), "task")
    lessons: dict[str, Lessons] = {}
    exams: list[Exam] = []
    for name, node in config["tasks"].items():
        task = build_task(node)
        if name in config["sequence"]["tasks"]:
            samples = subset(task.check("train", data["on_bad_sample"]), data["train_samples"], name)
            total_steps(len(samples), training, seed=config["seed"], task=name)
            lessons[name] = Lessons(task, samples)
        split = "validation" if data["validation"] and name in lessons else "test"
        exams.append(Exam.of(task, split, data["eval_samples"], data["on_bad_sample"]))
        progress.advance(1, task=name)

    if data["scoring"] == "compat":
        require_compat(exams)

    opened = {exam.task.name: exam.task for exam in exams}
    inputs = ranks.only_first(lambda: InputReader().read(config, opened)[0]) or {}

    progress.phase("load model", 1, "model")
    lmm = load(config["model"])
    if hardware["accelerator"] == "gpu":
        lmm.model.to(f"cuda:{ranks.local_rank}")
    plan = method.planned(lmm.model, make_plan(lmm.components, recipe["name"], rules_from_config(recipe)))

    def say(line: str) -> None:
        if ranks.first:
            print(f"lmm-forget: note: {line}", file=sys.stderr, flush=True)

    def note(line: str) -> None:
        repairs.append(line)
        say(line)

    def notice(line: str) -> None:
        notices.append(line)
        say(line)

    ground = Ground(
        config=config,
        job_dir=job_dir,
        lmm=lmm,
        plan=plan,
        method=method,
        lessons=lessons,
        exams=exams,
        store=Store(config["store"], note),
        progress=progress,
        logger=tracker,
        fingerprints=model_fingerprints(lmm.model, lmm.processor, lmm.end_token_ids),
        versions=versions(),
        inputs=inputs,
        hashes=model_hashes(lmm.model),
        notices=notices,
        ranks=ranks,
    )
    _warn_of_shared_pictures(ground, notice)
    _measure(ground, notice)
    ground.prober = _prober(ground)
    return ground


def settle_micro_batch(ground: Ground) -> None:
    """Make a number of `hardware.micro_batch=auto`: on a GPU the largest that fits, measured once per kind of job.

    (Elsewhere the configuration was resolved to the model's own.) All ranks must call it, with the ground laid.
    """
    hardware = ground.config["hardware"]
    if hardware["micro_batch"] == "auto":
        ground.config = {**ground.config, "hardware": {**hardware, "micro_batch": _micro_batch(ground)}}


def _micro_batch(ground: Ground) -> int:
    import json

    import torch

    from lmm_forget.files import write_atomic
    from lmm_forget.store.keys import digest
    from lmm_forget.training.budget import largest_that_fits

    config, ranks = ground.config, ground.ranks
    hardware, training = config["hardware"], config["training"]
    about = {
        "schema": 3,
        "device": torch.cuda.get_device_name(),
        "memory": torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory,
        "model": {name: ground.lmm.spec.get(name) for name in ("dtype", "attention", "image")},
        "loaded": dict(ground.fingerprints),
        "plan": digest(list(ground.plan.trainable)),
        "recipe": config["recipe"],
        "hardware": {name: hardware[name] for name in ("precision", "activation_checkpointing", "compile")},
        "share": int(training["global_batch"]) // ranks.size,
        "tasks": {name: lessons.task.fingerprint("train") for name, lessons in ground.lessons.items()},
    }
    path = ground.store.root / "measured" / f"micro-batch-{digest(about)}.json"

    def remembered() -> int | None:
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["micro_batch"])
        except (OSError, ValueError, KeyError):
            return None

    def remember() -> None:
        with ground.store.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps({"micro_batch": found, "about": about}, indent=1) + "\n")

    found = ranks.on_first(remembered)
    if found is None:
        found = largest_that_fits(
            ground.lmm,
            ground.plan,
            ground.method,
            list(ground.lessons.values()),
            training=training,
            hardware=hardware,
            ranks=ranks,
        )
        ranks.on_first(remember)
    ground.progress.phase(f"micro-batch {found}", 1, "measurement")
    return found


def _warn_of_shared_pictures(ground: Ground, note: Callable[[str], None]) -> None:
    """Say which given splits of a task show the same pictures: its scores may then rest on what was trained on."""
    for name, lesson in ground.lessons.items():
        for (one, other), pairs in lesson.task.shared_pictures().items():
            first = ", ".join(f"{brief(a)} = {brief(b)}" for a, b in pairs[:3])
            note(
                f"task {name}: {len(pairs)} picture{'s' * (len(pairs) != 1)} of {one} "
                f"{'is' if len(pairs) == 1 else 'are'} also in {other} (first: {first}); "
                "the data's own splits are kept"
            )


def _measure(ground: Ground, note: Callable[[str], None]) -> None:
    """Count the tokens of every sample: leave out, or refuse, what the model cannot take; say what was left out.

    Raises DataError for a sample that does not fit, unless bad samples are to be skipped.
    """
    from lmm_forget.evaluation.lengths import fit
    from lmm_forget.training.fit import total_steps

    config, lmm = ground.config, ground.lmm
    bad = config["data"]["on_bad_sample"]
    ground.progress.phase("measure samples", len(ground.lessons) + len(ground.exams), "task")
    for name, lesson in ground.lessons.items():
        found = fit(lmm, lesson.task, lesson.samples, taught=True, on_bad_sample=bad)
        lesson.samples = found.samples
        total_steps(len(lesson), config["training"], seed=config["seed"], task=name)
        _record(ground, name, "taught", found, note)
        ground.progress.advance(1, task=name)
    for exam in ground.exams:
        found = fit(lmm, exam.task, exam.samples, taught=False, on_bad_sample=bad)
        exam.samples = found.samples
        _record(ground, exam.task.name, "asked", found, note)
        ground.progress.advance(1, task=exam.task.name)


def _record(ground: Ground, task: str, how: str, found: Fit, note: Callable[[str], None]) -> None:
    """Keep for the record, and say, what was left out and which answers are too long."""
    skipped: Mapping[str, str] = getattr(found.samples, "skipped", {})
    ground.sifted[task, how] = {"skipped": len(skipped), "long_answers": len(found.long_answers)}
    if skipped:
        first = next(iter(skipped.values()))
        note(f"task {task}: {len(skipped)} samples are left out and not {how} (first: {first})")
    if found.long_answers:
        node = ground.config["tasks"][task]
        note(
            f"task {task}: {len(found.long_answers)} of {len(found.samples)} answers "
            f"{'that are taught' if how == 'taught' else 'asked for'} are longer than max_new_tokens="
            f"{node['max_new_tokens']}, so they cannot be said in full (first: {found.long_answers[0]})"
        )


def _prober(ground: Ground) -> Prober | None:
    """What looks into the model, as the configuration wants it; None for `probe=none`."""
    from lmm_forget.evaluation.ask import batch_size, subset
    from lmm_forget.evaluation.generate import generate
    from lmm_forget.probes.passes import Prompts
    from lmm_forget.probes.prober import Prober, spaced
    from lmm_forget.probes.spec import Spec
    from lmm_forget.probes.token_sets import find_sets
    from lmm_forget.store.keys import LIBRARIES, minor
    from lmm_forget.tasks.loading import build_task

    config, lmm = ground.config, ground.lmm
    spec = Spec.of(config["probe"])
    if spec is None:
        return None
    bad = config["data"]["on_bad_sample"]
    prompts = []
    for node in config["probe"]["tasks"].values():
        task = build_task(node)
        samples = subset(task.check("test", bad), spec.n, task.name)
        prompts.append(Prompts(task, node, samples, spec.n, task.fingerprint("test")))
    taught = {
        name: [lesson.task.target(lesson.samples[i]) for i in spaced(len(lesson), LEARNED_FROM)]
        for name, lesson in ground.lessons.items()
    }
    elsewhere = [one.task.target(one.samples[i]) for one in prompts for i in range(len(one.samples))]
    identity = {
        "loaded": dict(ground.fingerprints),
        "model": {name: lmm.spec.get(name) for name in ("dtype", "attention", "image")},
        "versions": {name: minor(ground.versions[name]) for name in LIBRARIES},
    }
    return Prober(
        spec,
        lmm,
        ground.plan,
        prompts,
        find_sets(lmm.processor.tokenizer, spec.token_sets, taught, elsewhere),
        greedy=generate,
        store=ground.store,
        weights=ground.weights,
        identity=identity,
        batch=batch_size(config["hardware"]),
        refer=lambda key: ground.refer("probes", key),
    )
