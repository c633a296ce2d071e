"""Evaluate and probe the model as a job has reached it, at the end of a stage or in the middle of one."""

from __future__ import annotations

from typing import Any

from lmm_forget.evaluation.engines.hf import HuggingFaceEngine
from lmm_forget.evaluation.evaluate import EvalResult, evaluate
from lmm_forget.experiment.context import JobContext
from lmm_forget.experiment.model_state import ModelState
from lmm_forget.models.weight_hashes import hash_parameters, hash_weights
from lmm_forget.probes.prober import ProbeResult
from lmm_forget.store import ResponseCache


def evaluate_all(context: JobContext, model_state: ModelState, phase_name: str) -> EvalResult:
    """Evaluate the model as the job has reached it on every target and every benchmark."""
    return _evaluate_weights(
        context,
        model_state.weights_hash,
        scoring_mode=context.config["data"]["scoring"],
        load_weights=model_state.load_pending_deltas,
        progress=context.progress,
        phase_name=phase_name,
        process_group=context.process_group,
    )


def evaluate_milestone(context: JobContext) -> dict[str, Any]:
    """Scores of the model as it is in the middle of a training, by task."""
    return dict(_evaluate_weights(context, hash_weights(hash_parameters(context.lmm.model))).scores)


def get_read_settings(context: JobContext) -> dict[str, Any]:
    """How questions are read: `batch_size` and `num_workers`."""
    hardware = context.config["hardware"]
    return {"batch_size": int(hardware["eval_batch_size"]), "num_workers": int(hardware.get("num_workers") or 0)}


def _evaluate_weights(context: JobContext, weights_hash: str, **options: Any) -> EvalResult:
    """Evaluate the model, whose weights hash to `weights_hash`; `options` are those of `evaluate`."""
    response_cache_key = context.get_response_cache_key(weights_hash)
    context.references.record("models", response_cache_key)
    return evaluate(
        context.lmm,
        context.eval_sets,
        HuggingFaceEngine(context.lmm),
        ResponseCache(context.store, response_cache_key),
        **get_read_settings(context),
        **options,
    )


def probe_current_model(context: JobContext, model_state: ModelState, phase_name: str) -> ProbeResult | None:
    """What the probes see in the model, on the first rank; None on the other ranks, and without probes."""
    prober = context.prober
    if prober is None:
        return None
    load_weights = model_state.load_pending_deltas
    if context.process_group.size > 1:  # all ranks must load, and only the first one is there while it probes
        model_state.load_pending_deltas()
        load_weights = _do_nothing
    return context.process_group.run_on_rank_zero(
        lambda: prober.probe_model(model_state.weights_hash, context.progress, phase_name, load_weights=load_weights)
    )


def _do_nothing() -> None:
    """Everything is loaded already."""
