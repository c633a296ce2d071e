"""The base and each stage, as a tracker logs them."""

from __future__ import annotations

from lmm_forget.evaluation.evaluate import EvalResult
from lmm_forget.experiment.context import JobContext
from lmm_forget.experiment.results import AnswersByTask
from lmm_forget.experiment.stage import StageResult
from lmm_forget.models.weight_hashes import hash_weights
from lmm_forget.probes.probe_records import make_stage_probe_entry
from lmm_forget.probes.prober import ProbeResult
from lmm_forget.store.archive import DELTA_FILE
from lmm_forget.tasks.sample_set import limit_samples
from lmm_forget.tracking.factory import read_num_shown_samples
from lmm_forget.tracking.tracker import StageMetrics
from lmm_forget.tracking.wandb_artifacts import make_thumbnail


def build_base_metrics(
    context: JobContext, evaluation: EvalResult, seconds: float, probe_result: ProbeResult | None
) -> StageMetrics:
    """The base, with small pictures of a few samples of every task to show."""
    num_shown = read_num_shown_samples(context.config)
    shown_samples = {
        eval_set.task.name: limit_samples(eval_set.samples, num_shown, eval_set.task.name)
        for eval_set in context.eval_sets
        if num_shown
    }
    return StageMetrics(
        index=0,
        weights_hash=hash_weights(context.base_tensor_hashes),
        scores={task: entry["value"] for task, entry in evaluation.scores.items()},
        answers=evaluation.answers,
        seconds={"evaluate": seconds},
        probes=None if probe_result is None else {"readings": probe_result.readings},
        pictures={
            task: {sample.id: make_thumbnail(sample.images) for sample in samples}
            for task, samples in shown_samples.items()
        },
    )


def build_stage_metrics(context: JobContext, stage_result: StageResult, base_answers: AnswersByTask) -> StageMetrics:
    """A finished stage; `base_answers` are the answers before any stage."""
    return StageMetrics(
        index=stage_result.index,
        task=stage_result.task,
        weights_hash=stage_result.record["weights_hash"],
        scores={task: entry["value"] for task, entry in stage_result.scores.items()},
        answers=stage_result.answers,
        record=stage_result.record,
        delta_path=context.store.get_stage_folder(stage_result.record["key"]) / DELTA_FILE,
        seconds={
            name: stage_result.run_stats[name]
            for name in ("train", "evaluate", "probe")
            if name in stage_result.run_stats
        },
        is_trained_here=bool(stage_result.run_stats["trained"]),
        probes=make_stage_probe_entry(base_answers, stage_result),
    )
