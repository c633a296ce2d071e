"""Evaluate and probe the model as a job has reached it, at the end of a stage or in the middle of one."""

from __future__ import annotations

from typing import Any

from lmm_forget.evaluation.evaluate import evaluate
from lmm_forget.evaluation.scored_answers import Answer
from lmm_forget.experiment.context import JobContext
from lmm_forget.experiment.model_state import ModelState
from lmm_forget.metrics.score_summary import build_score_entry
from lmm_forget.models.weight_hashes import hash_parameters, hash_weights
from lmm_forget.probes.prober import ProbeResult
from lmm_forget.progress import NullProgress


def evaluate_all(context: JobContext, model_state: ModelState, phase_name: str) -> tuple[dict[str, list[Answer]], int]:
    """The model's answers to every target and every benchmark, by task, and how many were generated now."""
    response_cache_key = context.get_response_cache_key(model_state.weights_hash)
    context.references.record("models", response_cache_key)
    return evaluate(
        context.lmm,
        response_cache_key,
        context.eval_sets,
        context.store,
        load_weights=model_state.load_pending_deltas,
        hardware_config=context.config["hardware"],
        progress=context.progress,
        phase_name=phase_name,
        process_group=context.process_group,
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


def evaluate_milestone(context: JobContext) -> dict[str, Any]:
    """Scores of the model as it is in the middle of a training, by task."""
    current_hash = hash_weights(hash_parameters(context.lmm.model))
    response_cache_key = context.get_response_cache_key(current_hash)
    context.references.record("models", response_cache_key)
    answers, _ = evaluate(
        context.lmm,
        response_cache_key,
        context.eval_sets,
        context.store,
        hardware_config=context.config["hardware"],
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
