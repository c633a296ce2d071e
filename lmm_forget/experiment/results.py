"""From a job's answers to results.json and the files beside it (schema: docs/results_schema.md)."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmm_forget.evaluation.answer_table import make_answer_table
from lmm_forget.evaluation.evaluate import EvalResult
from lmm_forget.evaluation.scored_answers import Answer, apply_scoring_mode
from lmm_forget.experiment.context import JobContext
from lmm_forget.experiment.stage import StageResult
from lmm_forget.experiment.versions import get_git_state
from lmm_forget.files import atomic_temporary_file
from lmm_forget.metrics.answer_scores import build_task_scores
from lmm_forget.metrics.figures_of_merit import compute_figures_of_merit
from lmm_forget.metrics.significance import estimate_changes_from_base
from lmm_forget.probes.probe_records import add_probe_entries, write_probe_tables
from lmm_forget.probes.prober import ProbeResult
from lmm_forget.report.job_probe_plots import save_probe_plots
from lmm_forget.report.plots import save_job_plots
from lmm_forget.report.sample_pictures import write_sample_pictures
from lmm_forget.store.keys import hash_json, select_recorded_config
from lmm_forget.store.record_schemas import RESULTS_SCHEMA

AnswersByTask = Mapping[str, Sequence[Answer]]


def build_results(
    context: JobContext,
    base_hash: str,
    base: EvalResult,
    stages: Sequence[StageResult],
    base_probes: ProbeResult | None = None,
) -> dict[str, Any]:
    """The content of results.json."""
    config = select_recorded_config(context.config)
    target_tasks, suite_tasks = context.config["sequence"]["tasks"], context.config["suite"]["tasks"]
    scoring = context.config["data"]["scoring"]
    scores = {
        task: build_task_scores(
            task,
            [
                answers_to_columns(apply_scoring_mode(each[task], scoring))
                for each in (base.answers, *(s.answers for s in stages))
            ],
        )
        for task in base.answers
    }
    changes = {task: estimate_changes_from_base(each) for task, each in scores.items()}
    results = {
        "schema": RESULTS_SCHEMA,
        "job": {"name": context.config["name"], "hash": hash_json(config)},
        "config": config,
        "plan": context.plan.to_json(),
        "base": {
            "weights_hash": base_hash,
            "fingerprints": dict(context.fingerprints),
            "scores": base.scores,
        },
        "stages": [_build_stage_entry(stage, changes) for stage in stages],
        "figures": compute_figures_of_merit(target_tasks, suite_tasks, scores, seed=context.config["seed"]),
        "timings": {
            "stages": [dict(stage.run_stats) for stage in stages],
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
        "data": _describe_samples(context, stages),
        "inputs": dict(context.input_fingerprints),
        "versions": {**context.versions, **get_git_state(), **_list_data_sources(context)},
    }
    if base_probes is not None and context.prober is not None:
        add_probe_entries(results, context.prober, base_probes, base.answers, stages)
    return results


def answers_to_columns(answers: Sequence[Answer]) -> dict[str, list[Any]]:
    """Answers as the columns that the metrics read."""
    return {name: [getattr(answer, name) for answer in answers] for name in ("sample_id", "image_id", "value", "group")}


def write_job_tables(
    job_dir: Path,
    context: JobContext,
    base_answers: AnswersByTask,
    stages: Sequence[StageResult],
    results: Mapping[str, Any],
    base_probes: ProbeResult | None = None,
) -> None:
    """answers.parquet (every answer after every stage; stage 0: the base), pictures.parquet, probe tables, figures."""
    tables = []
    for index, answers in enumerate((base_answers, *(stage.answers for stage in stages))):
        table = make_answer_table([answer for each in answers.values() for answer in each])
        tables.append(table.add_column(0, "stage", pa.array([index] * len(table), pa.int32())))
    with atomic_temporary_file(job_dir / "answers.parquet") as draft:
        pq.write_table(pa.concat_tables(tables), draft, compression="zstd")
    answers_by_stage = (base_answers, *(stage.answers for stage in stages))
    write_sample_pictures(
        job_dir,
        {task: _collect_score_histories([answers[task] for answers in answers_by_stage]) for task in base_answers},
        {eval_set.task.name: eval_set.samples for eval_set in context.eval_sets},
    )
    save_job_plots(results, job_dir)
    if base_probes is not None:
        write_probe_tables(job_dir, base_probes, base_answers, stages)
        save_probe_plots(results, job_dir)


def _describe_samples(context: JobContext, stages: Sequence[StageResult]) -> dict[str, Any]:
    """Which samples were evaluated and trained on, by task: split, number, fingerprints, and what was left out.

    Of what was evaluated, `fingerprint` covers the questions as the model reads them, `references` the right answers.
    """
    descriptions: dict[str, Any] = {}
    for eval_set in context.eval_sets:
        description: dict[str, Any] = {
            "split": eval_set.split,
            "samples": len(eval_set.samples),
            "fingerprint": hash_json(eval_set.keys),
            "references": hash_json(
                [
                    [sample.id, sample.image_id, list(sample.answers), sample.choices]
                    for sample in eval_set.samples_without_images
                ]
            ),
        }
        descriptions[eval_set.task.name] = {
            "evaluated": {**description, **context.skipped_samples.get((eval_set.task.name, "evaluated"), {})}
        }
    for stage in stages:
        description = {"split": "train", "samples": len(context.train_sets[stage.task].samples)}
        description["fingerprint"] = (stage.record.get("ingredients") or {}).get("data")
        description.update(context.skipped_samples.get((stage.task, "trained"), {}))
        descriptions.setdefault(stage.task, {})["trained"] = description
    return descriptions


def _collect_score_histories(answers_by_stage: Sequence[Sequence[Answer]]) -> dict[str, list[float]]:
    """{sample id: its scores at the base and after every stage}, in the order asked."""
    later_scores = [{answer.sample_id: answer.value for answer in answers} for answers in answers_by_stage[1:]]
    return {
        answer.sample_id: [answer.value, *(values[answer.sample_id] for values in later_scores)]
        for answer in answers_by_stage[0]
    }


def _list_data_sources(context: JobContext) -> dict[str, str]:
    """`data.<task>.<split>` -> the hub revision that was read, or "local copy"."""
    tasks = [
        *(train_set.task for train_set in context.train_sets.values()),
        *(eval_set.task for eval_set in context.eval_sets),
    ]
    return {f"data.{task.name}.{split}": source for task in tasks for split, source in task.get_provenance().items()}


def _build_stage_entry(stage_result: StageResult, changes: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    loss = stage_result.record["loss"]
    return {
        "index": stage_result.index,
        "task": stage_result.task,
        "key": stage_result.record["key"],
        "weights_hash": stage_result.record["weights_hash"],
        "steps": stage_result.record["steps"],
        "dropped": stage_result.record["dropped"],
        "loss": {"first": loss[0], "last": loss[-1], "mean_of_last_10": sum(loss[-10:]) / len(loss[-10:])},
        "scores": {
            task: {**entry, "against_base": dict(changes[task][stage_result.index - 1])}
            for task, entry in stage_result.scores.items()
        },
    }
