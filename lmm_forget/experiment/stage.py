"""One stage: train one skill, then evaluate every task; what it gave is one record in the store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from lmm_forget.errors import StoreError
from lmm_forget.evaluation.scored_answers import Answer
from lmm_forget.experiment.context import JobContext
from lmm_forget.experiment.model_evaluation import (
    evaluate_all,
    evaluate_milestone,
    get_read_settings,
    probe_current_model,
)
from lmm_forget.experiment.model_state import ModelState
from lmm_forget.experiment.stage_training import StageIdentity, find_earlier_train_sets, train_and_store_stage
from lmm_forget.probes.probe_callback import ProbeCallback, StageProbeResults
from lmm_forget.recipes.method import extract_delta
from lmm_forget.store import compute_config_keys, compute_stage_key
from lmm_forget.store.code_hashes import hash_user_code
from lmm_forget.store.input_fingerprints import select_training_inputs
from lmm_forget.store.keys import hash_json
from lmm_forget.training.callbacks.stage_callback import build_callbacks


@dataclass(frozen=True)
class StageResult:
    """A finished stage: its record, the answers after it, and what this job did for it.

    `run_stats` holds seconds of training and evaluation, whether the stage was trained by this job, how many answers it
    generated, at which step a saved state was taken up, and whether the run is still bit-exact.
    """

    index: int
    task: str
    record: Mapping[str, Any]
    answers: Mapping[str, list[Answer]]
    scores: Mapping[str, Mapping[str, Any]]
    run_stats: Mapping[str, Any]
    probes: StageProbeResults | None = None


def run_stage(context: JobContext, model_state: ModelState, index: int, task: str) -> StageResult:
    """Bring the model from stage `index - 1` to stage `index` (from the store if it was done before); evaluate it."""
    start_time = time.monotonic()
    label = f"stage {index} of {len(context.config['sequence']['tasks'])}"
    stage = _identify_stage(context, model_state, index, task)
    record, run_stats, probe_callback = _train_or_load_stage(context, model_state, stage, f"{label}: train {task}")
    if context.config["snapshot"] == "full":
        _add_missing_snapshot(context, model_state, record, label)
    context.process_group.broadcast_from_rank_zero(lambda: _record_stage_path(context, index, record["key"]))
    trained_time = time.monotonic()
    evaluation = evaluate_all(context, model_state, f"{label}: evaluate")
    answers, scores = evaluation.answers, evaluation.scores
    evaluation_seconds = time.monotonic() - trained_time
    run_stats |= {
        "train": trained_time - start_time,
        "evaluate": evaluation_seconds,
        "evaluated": evaluation.num_generated,
    }
    if context.prober is None or probe_callback is None:
        return StageResult(index, task, record, answers, scores, run_stats)
    probe_result = probe_current_model(context, model_state, f"{label}: probe")
    run_stats["probe"] = time.monotonic() - trained_time - evaluation_seconds
    stage_probes = context.process_group.run_on_rank_zero(
        lambda: None if probe_result is None else probe_callback.collect_results(probe_result, record["steps"])
    )
    return StageResult(index, task, record, answers, scores, run_stats, stage_probes)


def _identify_stage(context: JobContext, model_state: ModelState, index: int, task: str) -> StageIdentity:
    """The stage's key: what decides its weights, from the model and the method state that the job has reached."""
    train_task = context.train_sets[task].task
    earlier_train_sets = find_earlier_train_sets(context, index)
    key, ingredients = compute_stage_key(
        context.config,
        task,
        parent_weights_hash=model_state.weights_hash,
        data_fingerprint=train_task.fingerprint_split("train"),
        model_fingerprints=context.fingerprints,
        versions=context.versions,
        code_fingerprints={
            "task": hash_user_code(train_task),
            "method": hash_user_code(context.method),
            "callbacks": hash_user_code(*build_callbacks(context.config["callbacks"])),
        },
        method_state_digest=model_state.method_state_digest,
        earlier_data={
            name: train_set.task.fingerprint_split("train") for name, train_set in earlier_train_sets.items()
        },
    )
    context.references.record("stages", key)
    return StageIdentity(index, task, key, ingredients)


def _record_stage_path(context: JobContext, index: int, key: str) -> None:
    """Leave a hint in the store: which stage this job's configuration led to, from which inputs."""
    inputs = select_training_inputs(context.input_fingerprints, context.config["sequence"]["tasks"][:index])
    context.store.cache_stage_key(compute_config_keys(context.config)[index - 1], key, inputs)


def _train_or_load_stage(
    context: JobContext, model_state: ModelState, stage: StageIdentity, phase_name: str
) -> tuple[Mapping[str, Any], dict[str, Any], ProbeCallback | None]:
    """Train the stage, or take it from the store: (record, what this job did, what was watched on the way)."""
    store, process_group, key = context.store, context.process_group, stage.key
    probe_callback = process_group.raise_on_any_rank(lambda: _build_probe_callback(context, key, stage.task))

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
                record, run_stats = train_and_store_stage(context, model_state, stage, phase_name, probe_callback)
                if not model_state.is_same_as_recorded(record):
                    if cached_record is not None:
                        raise StoreError(
                            f"stage {key}: trained again for its milestones it gave other weights than those in the "
                            "store (another machine or thread count?); use another store, or probe.retrain=false"
                        )
                    model_state.use_cached_stage(record)  # somebody else was first, and with other bytes
                return record, run_stats, probe_callback
    model_state.use_cached_stage(cached_record)
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


def _add_missing_snapshot(context: JobContext, model_state: ModelState, record: Mapping[str, Any], label: str) -> None:
    """For `snapshot=full`: file every tensor of a stage that lies in the store with its delta only."""
    store, process_group, key = context.store, context.process_group, record["key"]
    names = list(model_state.tensor_hashes)
    if process_group.broadcast_from_rank_zero(lambda: store.has_full_model(record, names)):
        return
    model_state.load_pending_deltas()
    with _hold_stage_lease(context, key, f"{label}: file its full snapshot"):
        process_group.broadcast_from_rank_zero(
            lambda: store.add_snapshot(key, record["weights_hash"], extract_delta(context.lmm.model, names))
        )


def _build_probe_callback(context: JobContext, key: str, task: str) -> ProbeCallback | None:
    """What is looked at while this stage trains; None without probes."""
    if context.prober is None:
        return None
    for eval_set in context.eval_sets:
        eval_set.prepare_batches(context.lmm, **get_read_settings(context))
    eval_sets_digest = hash_json([[eval_set.task.name, eval_set.keys] for eval_set in context.eval_sets])
    return ProbeCallback(context.prober, key, task, lambda: evaluate_milestone(context), eval_sets_digest)


def _needs_retraining(probe_callback: ProbeCallback | None, record: Mapping[str, Any]) -> bool:
    """Whether a finished stage is to be trained once more because its milestones are missing."""
    return (
        probe_callback is not None
        and probe_callback.retrain
        and bool(probe_callback.find_missing_milestones(record["steps"]))
    )


def _estimate_disk_bytes(context: JobContext) -> int:
    """Room for a stage: its delta, its method state, and two training states (the new one is whole before the old one
    goes).
    """
    masters_and_moments = 3 * 4 * context.plan.parameter_counts["trainable"]
    state_bytes = context.method.estimate_state_bytes(context.plan)
    return int(context.plan.delta_bytes + state_bytes + 2 * masters_and_moments)


def _show_waiting(context: JobContext, phase_name: str, holder: str) -> None:
    context.progress.start_phase(f"{phase_name}: wait for {holder}, which is at it", 0, "step")
