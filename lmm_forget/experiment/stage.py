"""One stage: train one skill, then evaluate every task; what it gave is one record in the store."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lmm_forget.distributed.stop_signals import defer_stop_requests, raise_if_stop_requested
from lmm_forget.errors import StoreError
from lmm_forget.evaluation.evaluate import EvalSet, evaluate
from lmm_forget.evaluation.scored_answers import Answer
from lmm_forget.evaluation.task_evaluation import get_eval_batch_size
from lmm_forget.files import write_atomic
from lmm_forget.metrics.score_summary import build_score_entry
from lmm_forget.progress import NullProgress, Progress
from lmm_forget.recipes.method import Method, extract_delta, get_parameter_dtypes
from lmm_forget.store import (
    StageCheckpoints,
    Store,
    compute_config_keys,
    compute_response_cache_key,
    compute_stage_key,
)
from lmm_forget.store.code_hashes import hash_user_code
from lmm_forget.store.input_fingerprints import select_training_inputs
from lmm_forget.store.keys import hash_json
from lmm_forget.store.maintenance import REFERENCES_FILE
from lmm_forget.training.train_set import TrainSet

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM
    from lmm_forget.probes.probe_callback import ProbeCallback, StageProbeResults
    from lmm_forget.probes.prober import Prober, ProbeResult
    from lmm_forget.recipes.selection import TunePlan
    from lmm_forget.tracking import Tracker


@dataclass
class JobContext:
    """What every stage of a job stands on.

    `hashes` (tensor name -> hash) is the model as the job has reached it. Tensors of stages that came from the store
    are put into `lmm` only when something is to be computed: `pending` says which stage wrote each of them last.
    `notices` are what people should know when the job is done.
    """

    config: Mapping[str, Any]
    job_dir: Path
    lmm: LMM
    plan: TunePlan
    method: Method
    train_sets: Mapping[str, TrainSet]
    eval_sets: list[EvalSet]
    store: Store
    progress: Progress
    tracker: Tracker | None
    fingerprints: Mapping[str, str]
    """What the loaded model is beside its weights, by part; see `models.fingerprint`."""
    versions: Mapping[str, str]
    input_fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the files and the code that the job reads (first rank only); see `store.inputs`."""
    tensor_hashes: dict[str, str] = field(default_factory=dict)
    pending_deltas: dict[str, str] = field(default_factory=dict)
    store_references: dict[str, list[str]] = field(default_factory=lambda: {"stages": [], "models": [], "probes": []})
    prober: Prober | None = None
    process_group: ProcessGroup = SINGLE_PROCESS
    skipped_samples: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    """(task, asked or taught) -> how many samples were left out, and how many answers are too long to be said."""
    warnings: list[str] = field(default_factory=list)

    @property
    def weights_hash(self) -> str:
        """The `weights_hash` of the model as the job has reached it."""
        from lmm_forget.models.weight_hashes import hash_weights

        return hash_weights(self.tensor_hashes)

    def get_response_cache_key(self, weights_hash: str) -> str:
        """Key of everything about asking this job's model with the given `weights_hash` but the question itself."""
        return compute_response_cache_key(
            weights_hash,
            model_fingerprints=self.fingerprints,
            model_config=self.lmm.spec,
            versions=self.versions,
        )

    def use_cached_stage(self, record: Mapping[str, Any]) -> None:
        """Take over a recorded stage; its tensors are read when they are needed."""
        self.tensor_hashes.update(record["tensors"])
        self.pending_deltas.update(dict.fromkeys(record["tensors"], record["key"]))

    def load_pending_deltas(self) -> None:
        """Put the tensors of adopted stages into the model, each once. Raises Damaged if one is not what it was.

        All ranks must call it.
        """
        self.process_group.raise_on_any_rank(self._load_pending_deltas_here)

    def _load_pending_deltas_here(self) -> None:
        import torch

        parameters = dict(self.lmm.model.named_parameters())
        with torch.no_grad():
            for key in dict.fromkeys(self.pending_deltas.values()):
                names = [name for name, stage in self.pending_deltas.items() if stage == key]
                for name, tensor in self.store.iterate_delta_tensors(key, names):
                    parameters[name].copy_(tensor)
        self.pending_deltas.clear()

    def record_reference(self, kind: str, key: str) -> None:
        """Note in the job's folder that this job rests on something in the store, so that nobody cleans it away.

        What an earlier start of the job rested on stays there until `drop_previous_references`: it may be met again.
        """
        if key not in self.store_references[kind] and self.process_group.is_rank_zero:
            self.store_references[kind].append(key)
            self._write_references(self._read_previous_references())

    def drop_previous_references(self) -> None:
        """The job is done: keep only what it rests on."""
        if self.process_group.is_rank_zero:
            self._write_references({})

    def _read_previous_references(self) -> dict[str, list[str]]:
        """What the file names so far; nothing where there is none or it belongs to another store."""
        try:
            content = json.loads((self.job_dir / REFERENCES_FILE).read_text(encoding="utf-8"))
            previous = {kind: [str(key) for key in content[kind]] for kind in self.store_references}
            return previous if content["store"] == str(self.store.root) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _write_references(self, previous: Mapping[str, list[str]]) -> None:
        merged = {
            kind: [*keys, *(key for key in previous.get(kind, []) if key not in keys)]
            for kind, keys in self.store_references.items()
        }
        text = json.dumps({"store": str(self.store.root), **merged}, indent=1) + "\n"
        write_atomic(self.job_dir / REFERENCES_FILE, text, durable=False)


@dataclass(frozen=True)
class StageResult:
    """A finished stage: its record, the answers after it, and what this job did for it.

    `effort` holds seconds of teaching and asking, whether the stage was trained by this job, how many questions it
    asked, at which step a saved state was taken up, and whether that kept the promise of equal bytes.
    """

    index: int
    task: str
    record: Mapping[str, Any]
    answers: Mapping[str, list[Answer]]
    run_stats: Mapping[str, Any]
    probes: StageProbeResults | None = None


def run_stage(context: JobContext, index: int, task: str) -> StageResult:
    """Bring the model from stage `index - 1` to stage `index` (from the store if it was done before) and ask it."""
    start_time = time.monotonic()
    label = f"stage {index} of {len(context.config['sequence']['tasks'])}"
    record, run_stats, probe_callback = _train_or_load_stage(context, task, f"{label}: train {task}")
    context.process_group.broadcast_from_rank_zero(lambda: _record_stage_path(context, index, record["key"]))
    trained_time = time.monotonic()
    answers, num_generated = evaluate_all(context, f"{label}: evaluate")
    evaluation_seconds = time.monotonic() - trained_time
    run_stats |= {"train": trained_time - start_time, "evaluate": evaluation_seconds, "evaluated": num_generated}
    if context.prober is None or probe_callback is None:
        return StageResult(index, task, record, answers, run_stats)
    probe_result = probe_current_model(context, f"{label}: probe")
    run_stats["probe"] = time.monotonic() - trained_time - evaluation_seconds
    stage_probes = context.process_group.run_on_rank_zero(
        lambda: None if probe_result is None else probe_callback.collect_results(probe_result, record["steps"])
    )
    return StageResult(index, task, record, answers, run_stats, stage_probes)


def _record_stage_path(context: JobContext, index: int, key: str) -> None:
    """Leave a hint in the store: which stage this job's configuration led to, from which inputs."""
    inputs = select_training_inputs(context.input_fingerprints, context.config["sequence"]["tasks"][:index])
    context.store.cache_stage_key(compute_config_keys(context.config)[index - 1], key, inputs)


def probe_current_model(context: JobContext, phase_name: str) -> ProbeResult | None:
    """What the probes see in the model as the job has reached it, on the first rank; None on others or without them."""
    prober = context.prober
    if prober is None:
        return None
    load_weights = context.load_pending_deltas
    if (
        context.process_group.size > 1
    ):  # the others only wait while the first one looks: they cannot be asked for it then
        context.load_pending_deltas()
        load_weights = _do_nothing
    return context.process_group.run_on_rank_zero(
        lambda: prober.probe_model(context.weights_hash, context.progress, phase_name, load_weights=load_weights)
    )


def _do_nothing() -> None:
    """Everything is there already."""


def evaluate_all(context: JobContext, phase_name: str) -> tuple[dict[str, list[Answer]], int]:
    """The model's answers to every target and every benchmark, by task, and how many were asked for now."""
    response_cache_key = context.get_response_cache_key(context.weights_hash)
    context.record_reference("models", response_cache_key)
    return evaluate(
        context.lmm,
        response_cache_key,
        context.eval_sets,
        context.store,
        load_weights=context.load_pending_deltas,
        hardware_config=context.config["hardware"],
        progress=context.progress,
        phase_name=phase_name,
        process_group=context.process_group,
    )


def _train_or_load_stage(
    context: JobContext, task: str, phase_name: str
) -> tuple[Mapping[str, Any], dict[str, Any], ProbeCallback | None]:
    """Train the stage, or take it from the store: (record, what this job did, what was watched on the way)."""
    from lmm_forget.training.callbacks.stage_callback import build_callbacks

    key, ingredients = compute_stage_key(
        context.config,
        task,
        parent_weights_hash=context.weights_hash,
        data_fingerprint=context.train_sets[task].task.fingerprint_split("train"),
        model_fingerprints=context.fingerprints,
        versions=context.versions,
        code_fingerprints={
            "task": hash_user_code(context.train_sets[task].task),
            "method": hash_user_code(context.method),
            "callbacks": hash_user_code(*build_callbacks(context.config["callbacks"])),
        },
    )
    context.record_reference("stages", key)
    store, process_group = context.store, context.process_group
    probe_callback = process_group.raise_on_any_rank(lambda: _build_probe_callback(context, key, task))

    def find_finished_record() -> tuple[Mapping[str, Any] | None, bool]:
        """The stage's record, and whether it is wanted again all the same."""
        record = store.find_record(key)
        return record, record is not None and _needs_retraining(probe_callback, record)

    cached_record, needs_retraining = process_group.broadcast_from_rank_zero(find_finished_record)
    if cached_record is None or needs_retraining:
        process_group.broadcast_from_rank_zero(
            lambda: store.require_free_space(_estimate_disk_bytes(context), phase_name)
        )
        with _hold_stage_lease(context, key, phase_name):
            cached_record, needs_retraining = process_group.broadcast_from_rank_zero(find_finished_record)
            if cached_record is None or needs_retraining:
                stage_info = {"task": task, "ingredients": ingredients}
                record, run_stats = _train_with_deferred_stop(context, key, stage_info, phase_name, probe_callback)
                if record["weights_hash"] != context.weights_hash:
                    if cached_record is not None:
                        raise StoreError(
                            f"stage {key}: trained again for its milestones it gave other weights than those in the "
                            "store (another machine or thread count?); use another store, or probe.retrain=false"
                        )
                    context.use_cached_stage(record)  # somebody else was first, and with other bytes
                return record, run_stats, probe_callback
    context.use_cached_stage(cached_record)
    return cached_record, {"trained": False}, probe_callback


@contextmanager
def _hold_stage_lease(context: JobContext, key: str, phase_name: str) -> Iterator[None]:
    """Be the only job that trains this stage; the first rank waits for all of them."""
    process_group, exit_stack = context.process_group, ExitStack()
    name = f"stage-{key}"
    with exit_stack:
        process_group.broadcast_from_rank_zero(
            lambda: (
                exit_stack.enter_context(
                    context.store.acquire_lease(name, on_wait=lambda who: _show_waiting(context, phase_name, who))
                )
                and None
            )
        )
        yield


def _build_probe_callback(context: JobContext, key: str, task: str) -> ProbeCallback | None:
    """What is looked at while this stage trains; None without probes."""
    if context.prober is None:
        return None
    from lmm_forget.probes.probe_callback import ProbeCallback

    for eval_set in context.eval_sets:
        eval_set.prepare_batches(
            context.lmm,
            get_eval_batch_size(context.config["hardware"]),
            int(context.config["hardware"].get("num_workers") or 0),
        )
    eval_sets_digest = hash_json([[exam.task.name, exam.keys] for exam in context.eval_sets])
    return ProbeCallback(context.prober, key, task, lambda: _evaluate_current_weights(context), eval_sets_digest)


def _needs_retraining(probe_callback: ProbeCallback | None, record: Mapping[str, Any]) -> bool:
    """Whether a finished stage is to be trained once more because its milestones are missing."""
    return (
        probe_callback is not None
        and probe_callback.retrain
        and bool(probe_callback.find_missing_milestones(record["steps"]))
    )


def _evaluate_current_weights(context: JobContext) -> dict[str, Any]:
    """Scores of the model in the middle of a training, by task."""
    from lmm_forget.models.weight_hashes import hash_parameters, hash_weights

    current_hash = hash_weights(hash_parameters(context.lmm.model))
    response_cache_key = context.get_response_cache_key(current_hash)
    context.record_reference("models", response_cache_key)
    hardware = context.config["hardware"]
    answers, _ = evaluate(
        context.lmm,
        response_cache_key,
        context.eval_sets,
        context.store,
        hardware_config=hardware,
        progress=NullProgress(),
        phase_name="",
    )
    return {
        task: build_score_entry(
            [answer.value for answer in task_answers],
            [answer.image_id for answer in task_answers],
            [str(answer.group) for answer in task_answers] if task_answers[0].group is not None else None,
        )
        for task, task_answers in answers.items()
    }


def _train_with_deferred_stop(
    context: JobContext,
    key: str,
    stage_info: Mapping[str, Any],
    phase_name: str,
    probe_callback: ProbeCallback | None = None,
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Train and file the stage; the model is the stage model afterwards.

    A request to stop waits for the next step's state or, behind the last step, for the record.
    """
    with defer_stop_requests():
        trained = _train_and_store(context, key, stage_info, phase_name, probe_callback)
    raise_if_stop_requested()
    return trained


def _train_and_store(
    context: JobContext,
    key: str,
    stage_info: Mapping[str, Any],
    phase_name: str,
    probe_callback: ProbeCallback | None,
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    from lmm_forget.models.weight_hashes import hash_tensor
    from lmm_forget.training.determinism import derive_seed
    from lmm_forget.training.stage_config import TrainStageConfig
    from lmm_forget.training.train_stage import train_stage
    from lmm_forget.training.train_state import ResumeConfig

    config, lmm, task = context.config, context.lmm, stage_info["task"]
    context.load_pending_deltas()
    dtypes = get_parameter_dtypes(lmm.model)
    process_group = context.process_group
    partial = StageCheckpoints(context.store, key)
    context.method.start_stage(lmm, context.plan, seed=derive_seed(config["seed"], task))
    fit_result = train_stage(
        lmm,
        context.plan,
        context.method,
        context.train_sets[task],
        TrainStageConfig(
            task=task,
            seed=config["seed"],
            training_config=config["training"],
            hardware_config=config["hardware"],
            callbacks_config=config["callbacks"],
            process_group=process_group,
            resume_config=ResumeConfig(partial, int(config["checkpoint_every"])),
            step_probe=probe_callback,
            progress=context.progress,
            tracker=context.tracker,
            phase_name=phase_name,
        ),
    )
    if probe_callback is not None:
        process_group.broadcast_from_rank_zero(probe_callback.save_alarm)
    delta = context.method.end_stage(lmm, context.plan, dtypes, keep_delta=process_group.is_rank_zero)
    changed_hashes = process_group.broadcast_from_rank_zero(
        lambda: {name: hash_tensor(tensor) for name, tensor in delta.items()}
    )
    context.tensor_hashes.update(changed_hashes)
    stored_names = list(changed_hashes)
    if config["snapshot"] == "full":
        stored_names = [name for name, _ in lmm.model.named_parameters()]
        delta = extract_delta(lmm.model, stored_names) if process_group.is_rank_zero else {}
    record = {
        **stage_info,
        "weights_hash": context.weights_hash,
        "tensors": {name: context.tensor_hashes[name] for name in stored_names},
        "steps": fit_result.num_steps,
        "loss": fit_result.step_losses,
        "samples": fit_result.num_samples,
        "dropped": fit_result.dropped_per_epoch,
        "micro_batch_size": fit_result.micro_batch_size,
        "seconds": fit_result.seconds,
        "exact": fit_result.is_exact,
    }
    if fit_result.stopped_after_step is not None:
        record["stopped"] = fit_result.stopped_after_step

    def commit_stage() -> Mapping[str, Any]:
        context.store.commit_stage(key, record, delta)
        partial.delete()
        return context.store.find_record(key) or {**record, "key": key}

    run_stats = {"trained": True, "resumed_at": fit_result.resumed_from_step, "exact": fit_result.is_exact}
    return process_group.broadcast_from_rank_zero(commit_stage), run_stats


def _estimate_disk_bytes(context: JobContext) -> int:
    """Room for a stage: its delta, and two saved states (the new one is whole before the old one goes)."""
    masters_and_moments = 3 * 4 * context.plan.parameter_counts["trainable"]
    return int(context.plan.delta_bytes + 2 * masters_and_moments)


def _show_waiting(context: JobContext, phase_name: str, holder: str) -> None:
    context.progress.start_phase(f"{phase_name}: wait for {holder}, which is at it", 0, "step")
