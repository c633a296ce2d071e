"""What a job stands on, made before anything is computed: data, model, plan, method, store, prober."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lmm_forget.evaluation.eval_set import EvalSet, require_compat_scores
from lmm_forget.experiment.job_prober import build_prober
from lmm_forget.experiment.model_state import ModelState
from lmm_forget.experiment.references import StoreReferences
from lmm_forget.experiment.sample_checks import SkippedSamples, check_sample_lengths, warn_of_shared_images
from lmm_forget.experiment.versions import get_library_versions
from lmm_forget.models.fingerprint import fingerprint_model_parts
from lmm_forget.models.loading import LMM, load_model
from lmm_forget.models.weight_hashes import hash_parameters, hash_weights
from lmm_forget.probes.prober import Prober
from lmm_forget.progress import Progress
from lmm_forget.recipes.method import Method, build_method
from lmm_forget.recipes.selection import TunePlan, make_tune_plan, parse_rules
from lmm_forget.store import Store, compute_response_cache_key
from lmm_forget.store.input_fingerprints import InputFingerprinter
from lmm_forget.tasks.sample_set import limit_samples
from lmm_forget.tasks.task_loading import build_task
from lmm_forget.tracking import Tracker
from lmm_forget.training.callbacks.stage_callback import build_callbacks
from lmm_forget.training.micro_batches import count_accumulation_steps
from lmm_forget.training.precision import refuse_pure_bf16
from lmm_forget.training.strategies.stage_strategy import build_strategy
from lmm_forget.training.train_set import TrainSet
from lmm_forget.training.train_stage import count_total_steps


@dataclass(frozen=True)
class JobContext:
    """What every stage of a job stands on; nothing in it is replaced while the job runs.

    The tensors of `lmm` are those that `ModelState` describes. `references` notes in the job's folder what the job
    rests on in the store. `warnings` are what people should know when the job is done.
    """

    config: Mapping[str, Any]
    job_dir: Path
    lmm: LMM
    plan: TunePlan
    method: Method
    train_sets: Mapping[str, TrainSet]
    eval_sets: list[EvalSet]
    store: Store
    references: StoreReferences
    process_group: ProcessGroup
    tracker: Tracker | None
    progress: Progress
    prober: Prober | None
    fingerprints: Mapping[str, str]
    """What the loaded model is beside its weights, by part; see `models.fingerprint`."""
    base_tensor_hashes: Mapping[str, str]
    versions: Mapping[str, str]
    input_fingerprints: Mapping[str, str]
    """Fingerprints of the files and the code that the job reads (rank 0 only); see `store.input_fingerprints`."""
    skipped_samples: SkippedSamples
    warnings: tuple[str, ...]

    def make_base_state(self) -> ModelState:
        """The state of the model before the first stage; `lmm` must hold the base."""
        return ModelState(self.lmm, self.store, self.process_group, self.base_tensor_hashes)

    def get_response_cache_key(self, weights_hash: str) -> str:
        """Key of everything about asking this job's model with the given `weights_hash` but the question itself."""
        return compute_response_cache_key(
            weights_hash,
            model_fingerprints=self.fingerprints,
            model_config=self.lmm.spec,
            versions=self.versions,
        )


def build_context(
    config: dict[str, Any],
    job_dir: Path,
    progress: Progress,
    repairs: list[str],
    tracker: Tracker | None = None,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> JobContext:
    """Load the model, fix the plan, read every sample once: whatever can be wrong is said before the first step.

    Lines about what was found damaged in the store are added to `repairs` as long as the job runs.
    """
    warnings: list[str] = []

    def print_note(line: str) -> None:
        if process_group.is_rank_zero:
            print(f"lmm-forget: note: {line}", file=sys.stderr, flush=True)

    def record_repair(line: str) -> None:
        repairs.append(line)
        print_note(line)

    def record_warning(line: str) -> None:
        warnings.append(line)
        print_note(line)

    recipe, hardware = config["recipe"], config["hardware"]
    method = build_method(recipe)
    refuse_pure_bf16(config["training"], hardware)
    _check_micro_batch(config, process_group)
    # A node that names no callback or strategy is refused before anything is loaded.
    build_callbacks(config["callbacks"])
    build_strategy(hardware, process_group)
    train_sets, eval_sets = _load_samples(config, progress)
    eval_tasks = {eval_set.task.name: eval_set.task for eval_set in eval_sets}
    input_fingerprints = (
        process_group.run_on_rank_zero(lambda: InputFingerprinter().compute_fingerprints(config, eval_tasks)[0]) or {}
    )
    progress.start_phase("load model", 1, "model")
    lmm = load_model(config["model"])
    if hardware["accelerator"] == "gpu":
        lmm.model.to(f"cuda:{process_group.local_rank}")
    plan = method.adapt_plan(lmm.model, make_tune_plan(lmm.components, recipe["name"], parse_rules(recipe)))
    store = Store(config["store"], record_repair)
    references = StoreReferences(job_dir, store.root, process_group.is_rank_zero)
    fingerprints = fingerprint_model_parts(lmm.model, lmm.processor, lmm.end_token_ids)
    versions = get_library_versions()
    base_tensor_hashes = hash_parameters(lmm.model)
    warn_of_shared_images(train_sets, record_warning)
    skipped_samples = check_sample_lengths(config, lmm, train_sets, eval_sets, progress, record_warning)
    prober = build_prober(
        config,
        lmm,
        plan,
        train_sets,
        store,
        references,
        base_weights_hash=hash_weights(base_tensor_hashes),
        fingerprints=fingerprints,
        versions=versions,
    )
    return JobContext(
        config=config,
        job_dir=job_dir,
        lmm=lmm,
        plan=plan,
        method=method,
        train_sets=train_sets,
        eval_sets=eval_sets,
        store=store,
        references=references,
        process_group=process_group,
        tracker=tracker,
        progress=progress,
        prober=prober,
        fingerprints=fingerprints,
        base_tensor_hashes=base_tensor_hashes,
        versions=versions,
        input_fingerprints=input_fingerprints,
        skipped_samples=skipped_samples,
        warnings=tuple(warnings),
    )


def _check_micro_batch(config: Mapping[str, Any], process_group: ProcessGroup) -> None:
    """Raise ConfigError for a global batch or micro-batch that cannot be cut over the ranks."""
    global_batch_size, setting = int(config["training"]["global_batch_size"]), config["hardware"]["micro_batch_size"]
    samples_per_rank = max(1, global_batch_size // process_group.size)
    micro_batch_size = 1 if setting == "auto" else min(int(setting), samples_per_rank)
    count_accumulation_steps(global_batch_size, micro_batch_size, process_group.size)


def _load_samples(config: Mapping[str, Any], progress: Progress) -> tuple[dict[str, TrainSet], list[EvalSet]]:
    """The samples to train on, by task, and those to evaluate."""
    data = config["data"]
    progress.start_phase("read data", len(config["tasks"]), "task")
    train_sets: dict[str, TrainSet] = {}
    eval_sets: list[EvalSet] = []
    for name, node in config["tasks"].items():
        task = build_task(node)
        if name in config["sequence"]["tasks"]:
            samples = limit_samples(task.validate_split("train", data["on_bad_sample"]), data["train_samples"], name)
            count_total_steps(len(samples), config["training"], seed=config["seed"], task=name)
            train_sets[name] = TrainSet(task, samples)
        split = "validation" if data["validation"] and name in train_sets else "test"
        eval_sets.append(EvalSet.from_task(task, split, data["eval_samples"], data["on_bad_sample"]))
        progress.advance(1, task=name)
    if data["scoring"] == "compat":
        require_compat_scores(eval_sets)
    return train_sets, eval_sets
