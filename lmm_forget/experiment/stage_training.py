"""Train one stage and file what it gave: record, delta, method state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lmm_forget.distributed.stop_signals import defer_stop_requests, raise_if_stop_requested
from lmm_forget.experiment.context import JobContext
from lmm_forget.experiment.model_state import ModelState
from lmm_forget.models.loading import LMM
from lmm_forget.models.low_rank import LowRankUpdate
from lmm_forget.models.weight_hashes import hash_tensor
from lmm_forget.probes.probe_callback import ProbeCallback
from lmm_forget.recipes.method import (
    AutocastFactory,
    StageContext,
    StageOutput,
    extract_delta,
    get_parameter_dtypes,
)
from lmm_forget.store import StageCheckpoints
from lmm_forget.training.determinism import derive_seed
from lmm_forget.training.precision import PrecisionContext
from lmm_forget.training.stage_config import FitResult, TrainStageConfig
from lmm_forget.training.train_set import TrainSet
from lmm_forget.training.train_stage import train_stage
from lmm_forget.training.train_state import ResumeConfig


@dataclass(frozen=True)
class StageIdentity:
    """Which stage is to be trained: its number (from 1), task, key and the key's ingredients."""

    index: int
    task: str
    key: str
    ingredients: Mapping[str, Any]


def find_earlier_train_sets(context: JobContext, index: int) -> dict[str, TrainSet]:
    """What the method may see of the stages before stage `index`: their train sets by task, if it asks for them."""
    earlier_tasks = context.config["sequence"]["tasks"][: index - 1] if context.method.needs_earlier_data else []
    return {task: context.train_sets[task] for task in earlier_tasks}


def train_and_store_stage(
    context: JobContext,
    model_state: ModelState,
    stage: StageIdentity,
    phase_name: str,
    probe_callback: ProbeCallback | None,
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Train and file the stage: (its record in the store, what this job did). The model is the stage model afterwards.

    A request to stop waits for the next step's state or, behind the last step, for the record.
    """
    with defer_stop_requests():
        trained = _train_and_store(context, model_state, stage, phase_name, probe_callback)
    raise_if_stop_requested()
    return trained


def _train_and_store(
    context: JobContext,
    model_state: ModelState,
    stage: StageIdentity,
    phase_name: str,
    probe_callback: ProbeCallback | None,
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    config, lmm, process_group = context.config, context.lmm, context.process_group
    model_state.load_pending_deltas()
    method_state = model_state.load_method_state()
    checkpoints = StageCheckpoints(context.store, stage.key)
    train_set = context.train_sets[stage.task]
    stage_context = _make_stage_context(context, stage)
    context.method.start_stage(stage_context, lmm, train_set, method_state)
    fit_result = train_stage(
        lmm,
        context.plan,
        context.method,
        train_set,
        TrainStageConfig(
            task=stage.task,
            seed=config["seed"],
            training_config=config["training"],
            hardware_config=config["hardware"],
            callbacks_config=config["callbacks"],
            process_group=process_group,
            resume_config=ResumeConfig(checkpoints, int(config["checkpoint_every"])),
            step_probe=probe_callback,
            progress=context.progress,
            tracker=context.tracker,
            phase_name=phase_name,
        ),
    )
    if probe_callback is not None:
        process_group.broadcast_from_rank_zero(probe_callback.save_alarm)
    output = context.method.end_stage(stage_context, lmm)
    record, delta = _make_record(context, model_state, stage, fit_result, output)

    def commit_stage() -> Mapping[str, Any]:
        state = None if output.state is None else (output.state.tensors, output.state.values)
        context.store.commit_stage(stage.key, record, delta, state)
        checkpoints.delete()
        return context.store.find_record(stage.key) or {**record, "key": stage.key}

    run_stats = {"trained": True, "resumed_at": fit_result.resumed_from_step, "exact": fit_result.is_exact}
    return process_group.broadcast_from_rank_zero(commit_stage), run_stats


def make_compute_precision(lmm: LMM, precision: str) -> Callable[[], AbstractContextManager[AutocastFactory]]:
    """For `StageContext.use_compute_precision`: the compute precision that training has with this setting."""

    @contextmanager
    def use_compute_precision() -> Iterator[AutocastFactory]:
        checkpoint_dtypes = {info.name: info.dtype for info in lmm.components}
        with PrecisionContext(lmm.model, precision, lmm.model.device.type, checkpoint_dtypes) as precision_context:
            yield precision_context.make_autocast_context

    return use_compute_precision


def _make_stage_context(context: JobContext, stage: StageIdentity) -> StageContext:
    lmm, config = context.lmm, context.config
    return StageContext(
        plan=context.plan,
        base_dtypes=get_parameter_dtypes(lmm.model),
        task=stage.task,
        index=stage.index,
        seed=derive_seed(config["seed"], stage.task),
        global_batch_size=int(config["training"]["global_batch_size"]),
        process_group=context.process_group,
        use_compute_precision=make_compute_precision(lmm, str(config["hardware"].get("precision") or "bf16")),
        earlier_train_sets=find_earlier_train_sets(context, stage.index),
    )


def _make_record(
    context: JobContext, model_state: ModelState, stage: StageIdentity, fit_result: FitResult, output: StageOutput
) -> tuple[dict[str, Any], Mapping[str, Tensor | LowRankUpdate]]:
    """The stage's record and the delta to file with it; `model_state` is that of the stage afterwards."""
    model, process_group = context.lmm.model, context.process_group
    parameters = dict(model.named_parameters())
    changed_hashes = process_group.broadcast_from_rank_zero(
        lambda: {
            name: hash_tensor(parameters[name] if isinstance(entry, LowRankUpdate) else entry)
            for name, entry in output.delta.items()
        }
    )
    model_state.use_trained_stage(changed_hashes, output.state)
    delta: Mapping[str, Tensor | LowRankUpdate] = output.delta
    stored_names = list(changed_hashes)
    if context.config["snapshot"] == "full":
        stored_names = list(parameters)
        delta = extract_delta(model, stored_names) if process_group.is_rank_zero else {}
    record = {
        "task": stage.task,
        "ingredients": stage.ingredients,
        "weights_hash": model_state.weights_hash,
        "tensors": {name: model_state.tensor_hashes[name] for name in stored_names},
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
    return record, delta
