"""What a job stands on, laid before anything is computed: data, model, plan, method, store, probes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lmm_forget.errors import shorten_value
from lmm_forget.experiment.stage import JobContext
from lmm_forget.progress import Progress
from lmm_forget.tracking.tracker import Tracker

if TYPE_CHECKING:
    from lmm_forget.evaluation.token_lengths import LengthReport
    from lmm_forget.probes.prober import Prober

MAX_TOKEN_SET_ANSWERS = 256
"""Training answers of a task that its token set is learned from."""


def build_context(
    config: dict[str, Any],
    job_dir: Path,
    progress: Progress,
    repairs: list[str],
    tracker: Tracker | None = None,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> JobContext:
    """Load the model, fix the plan, read every sample once: whatever can be wrong is said before the first step."""
    from lmm_forget.evaluation.evaluate import EvalSet, require_compat_scores
    from lmm_forget.evaluation.task_evaluation import limit_samples
    from lmm_forget.experiment.results import get_library_versions
    from lmm_forget.models.fingerprint import fingerprint_model_parts
    from lmm_forget.models.loading import load_model
    from lmm_forget.models.weight_hashes import hash_parameters
    from lmm_forget.recipes.method import build_method
    from lmm_forget.recipes.selection import make_tune_plan, parse_rules
    from lmm_forget.store import Store
    from lmm_forget.store.input_fingerprints import InputFingerprinter
    from lmm_forget.tasks.task_loading import build_task
    from lmm_forget.training.callbacks.stage_callback import build_callbacks
    from lmm_forget.training.micro_batches import count_accumulation_steps
    from lmm_forget.training.precision import refuse_pure_bf16
    from lmm_forget.training.strategies.stage_strategy import build_strategy
    from lmm_forget.training.train_set import TrainSet
    from lmm_forget.training.train_stage import count_total_steps

    warnings: list[str] = []
    recipe, data, training = config["recipe"], config["data"], config["training"]
    method = build_method(recipe)
    refuse_pure_bf16(training, config["hardware"])
    # A node that names no callback or strategy is refused before anything is loaded.
    build_callbacks(config["callbacks"])
    build_strategy(config["hardware"], process_group)
    hardware = config["hardware"]
    global_batch_size = int(training["global_batch_size"])
    samples_per_rank, micro_batch_setting = (
        max(1, global_batch_size // process_group.size),
        hardware["micro_batch_size"],
    )
    count_accumulation_steps(
        global_batch_size,
        1 if micro_batch_setting == "auto" else min(int(micro_batch_setting), samples_per_rank),
        process_group.size,
    )
    progress.start_phase("read data", len(config["tasks"]), "task")
    train_sets: dict[str, TrainSet] = {}
    eval_sets: list[EvalSet] = []
    for name, node in config["tasks"].items():
        task = build_task(node)
        if name in config["sequence"]["tasks"]:
            samples = limit_samples(task.validate_split("train", data["on_bad_sample"]), data["train_samples"], name)
            count_total_steps(len(samples), training, seed=config["seed"], task=name)
            train_sets[name] = TrainSet(task, samples)
        split = "validation" if data["validation"] and name in train_sets else "test"
        eval_sets.append(EvalSet.from_task(task, split, data["eval_samples"], data["on_bad_sample"]))
        progress.advance(1, task=name)

    if data["scoring"] == "compat":
        require_compat_scores(eval_sets)

    eval_tasks = {exam.task.name: exam.task for exam in eval_sets}
    inputs = (
        process_group.run_on_rank_zero(lambda: InputFingerprinter().compute_fingerprints(config, eval_tasks)[0]) or {}
    )

    progress.start_phase("load model", 1, "model")
    lmm = load_model(config["model"])
    if hardware["accelerator"] == "gpu":
        lmm.model.to(f"cuda:{process_group.local_rank}")
    plan = method.adapt_plan(lmm.model, make_tune_plan(lmm.components, recipe["name"], parse_rules(recipe)))

    def print_note(line: str) -> None:
        if process_group.is_rank_zero:
            print(f"lmm-forget: note: {line}", file=sys.stderr, flush=True)

    def record_repair(line: str) -> None:
        repairs.append(line)
        print_note(line)

    def record_warning(line: str) -> None:
        warnings.append(line)
        print_note(line)

    context = JobContext(
        config=config,
        job_dir=job_dir,
        lmm=lmm,
        plan=plan,
        method=method,
        train_sets=train_sets,
        eval_sets=eval_sets,
        store=Store(config["store"], record_repair),
        progress=progress,
        tracker=tracker,
        fingerprints=fingerprint_model_parts(lmm.model, lmm.processor, lmm.end_token_ids),
        versions=get_library_versions(),
        input_fingerprints=inputs,
        tensor_hashes=hash_parameters(lmm.model),
        warnings=warnings,
        process_group=process_group,
    )
    _warn_of_shared_images(context, record_warning)
    _check_sample_lengths(context, record_warning)
    context.prober = _build_prober(context)
    return context


def resolve_micro_batch(context: JobContext) -> None:
    """Make a number of `hardware.micro_batch_size=auto`: on a GPU the largest that fits, measured once per kind of job.

    (Elsewhere the configuration was resolved to the model's own.) All ranks must call it, with the ground laid.
    """
    hardware = context.config["hardware"]
    if hardware["micro_batch_size"] == "auto":
        context.config = {
            **context.config,
            "hardware": {**hardware, "micro_batch_size": _find_micro_batch_size(context)},
        }


def _find_micro_batch_size(context: JobContext) -> int:
    import json

    import torch

    from lmm_forget.files import write_atomic
    from lmm_forget.store.keys import hash_json
    from lmm_forget.training.micro_batch_search import find_largest_micro_batch

    config, process_group = context.config, context.process_group
    hardware, training = config["hardware"], config["training"]
    measurement_conditions = {
        "schema": 3,
        "device": torch.cuda.get_device_name(),
        "memory": torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory,
        "model": {name: context.lmm.spec.get(name) for name in ("dtype", "attention", "image")},
        "loaded": dict(context.fingerprints),
        "plan": hash_json(list(context.plan.trainable)),
        "recipe": config["recipe"],
        "hardware": {name: hardware[name] for name in ("precision", "activation_checkpointing", "compile")},
        "share": int(training["global_batch_size"]) // process_group.size,
        "tasks": {name: lessons.task.fingerprint_split("train") for name, lessons in context.train_sets.items()},
    }
    cache_path = context.store.root / "measured" / f"micro-batch-{hash_json(measurement_conditions)}.json"

    def read_cached_size() -> int | None:
        try:
            return int(json.loads(cache_path.read_text(encoding="utf-8"))["micro_batch_size"])
        except (OSError, ValueError, KeyError):
            return None

    def write_cached_size() -> None:
        with context.store.wrap_write_errors(cache_path):
            cache_path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(
                cache_path,
                json.dumps({"micro_batch_size": micro_batch_size, "about": measurement_conditions}, indent=1) + "\n",
            )

    micro_batch_size = process_group.broadcast_from_rank_zero(read_cached_size)
    if micro_batch_size is None:
        micro_batch_size = find_largest_micro_batch(
            context.lmm,
            context.plan,
            context.method,
            list(context.train_sets.values()),
            training_config=training,
            hardware_config=hardware,
            process_group=process_group,
        )
        process_group.broadcast_from_rank_zero(write_cached_size)
    context.progress.start_phase(f"micro-batch {micro_batch_size}", 1, "measurement")
    return micro_batch_size


def _warn_of_shared_images(context: JobContext, record_warning: Callable[[str], None]) -> None:
    """Say which given splits of a task show the same pictures: its scores may then rest on what was trained on."""
    for name, train_set in context.train_sets.items():
        for (split, other_split), pairs in train_set.task.find_split_overlap().items():
            examples = ", ".join(f"{shorten_value(a)} = {shorten_value(b)}" for a, b in pairs[:3])
            record_warning(
                f"task {name}: {len(pairs)} picture{'s' * (len(pairs) != 1)} of {split} "
                f"{'is' if len(pairs) == 1 else 'are'} also in {other_split} (first: {examples}); "
                "the data's own splits are kept"
            )


def _check_sample_lengths(context: JobContext, record_warning: Callable[[str], None]) -> None:
    """Count the tokens of every sample: leave out, or refuse, what the model cannot take; say what was left out.

    Raises DataError for a sample that does not fit, unless bad samples are to be skipped.
    """
    from lmm_forget.evaluation.token_lengths import check_lengths
    from lmm_forget.training.train_stage import count_total_steps

    config, lmm = context.config, context.lmm
    bad_sample_policy = config["data"]["on_bad_sample"]
    context.progress.start_phase("measure samples", len(context.train_sets) + len(context.eval_sets), "task")
    for name, train_set in context.train_sets.items():
        length_report = check_lengths(
            lmm, train_set.task, train_set.samples, is_training=True, on_bad_sample=bad_sample_policy
        )
        train_set.samples = length_report.samples
        count_total_steps(len(train_set), config["training"], seed=config["seed"], task=name)
        _record_skipped_samples(context, name, "trained", length_report, record_warning)
        context.progress.advance(1, task=name)
    for eval_set in context.eval_sets:
        length_report = check_lengths(
            lmm, eval_set.task, eval_set.samples, is_training=False, on_bad_sample=bad_sample_policy
        )
        eval_set.samples = length_report.samples
        _record_skipped_samples(context, eval_set.task.name, "evaluated", length_report, record_warning)
        context.progress.advance(1, task=eval_set.task.name)


def _record_skipped_samples(
    context: JobContext,
    task_name: str,
    usage: str,
    length_report: LengthReport,
    record_warning: Callable[[str], None],
) -> None:
    """Keep for the record, and say, what was left out and which answers are too long."""
    skipped: Mapping[str, str] = getattr(length_report.samples, "skipped", {})
    context.skipped_samples[task_name, usage] = {
        "skipped": len(skipped),
        "long_answers": len(length_report.long_answers),
    }
    if skipped:
        first = next(iter(skipped.values()))
        record_warning(f"task {task_name}: {len(skipped)} samples are left out and not {usage} (first: {first})")
    if length_report.long_answers:
        node = context.config["tasks"][task_name]
        record_warning(
            f"task {task_name}: {len(length_report.long_answers)} of {len(length_report.samples)} answers "
            f"{'that are taught' if usage == 'taught' else 'asked for'} are longer than max_new_tokens="
            f"{node['max_new_tokens']}, so they cannot be said in full (first: {length_report.long_answers[0]})"
        )


def _build_prober(context: JobContext) -> Prober | None:
    """What looks into the model, as the configuration wants it; None for `probe=none`."""
    from lmm_forget.evaluation.generation import generate_answers
    from lmm_forget.evaluation.task_evaluation import get_eval_batch_size, limit_samples
    from lmm_forget.probes.forward_passes import PromptSet
    from lmm_forget.probes.probe_config import ProbeConfig
    from lmm_forget.probes.prober import Prober, select_evenly_spaced
    from lmm_forget.probes.token_sets import find_token_sets
    from lmm_forget.store.keys import KEYED_LIBRARIES, truncate_to_minor_version
    from lmm_forget.tasks.task_loading import build_task

    config, lmm = context.config, context.lmm
    spec = ProbeConfig.from_config(config["probe"])
    if spec is None:
        return None
    bad_sample_policy = config["data"]["on_bad_sample"]
    prompts = []
    for node in config["probe"]["tasks"].values():
        task = build_task(node)
        samples = limit_samples(task.validate_split("test", bad_sample_policy), spec.n, task.name)
        prompts.append(PromptSet(task, node, samples, spec.n, task.fingerprint_split("test")))
    target_answers = {
        name: [
            lesson.task.get_target_answer(lesson.samples[i])
            for i in select_evenly_spaced(len(lesson), MAX_TOKEN_SET_ANSWERS)
        ]
        for name, lesson in context.train_sets.items()
    }
    prompt_answers = [
        prompt_set.task.get_target_answer(prompt_set.samples[i])
        for prompt_set in prompts
        for i in range(len(prompt_set.samples))
    ]
    identity = {
        "loaded": dict(context.fingerprints),
        "model": {name: lmm.spec.get(name) for name in ("dtype", "attention", "image")},
        "versions": {name: truncate_to_minor_version(context.versions[name]) for name in KEYED_LIBRARIES},
    }
    return Prober(
        spec,
        lmm,
        context.plan,
        prompts,
        find_token_sets(lmm.processor.tokenizer, spec.token_sets, target_answers, prompt_answers),
        generate_greedily=generate_answers,
        store=context.store,
        weights_hash=context.weights_hash,
        settings_identity=identity,
        batch_size=get_eval_batch_size(config["hardware"]),
        record_reference=lambda key: context.record_reference("probes", key),
    )
