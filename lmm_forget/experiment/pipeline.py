"""The loop: base evaluation, stage 1 … stage n, results. Read from top to bottom."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lmm_forget.experiment.context import build_context
from lmm_forget.experiment.micro_batch_setting import resolve_micro_batch
from lmm_forget.experiment.model_evaluation import evaluate_all, probe_current_model
from lmm_forget.experiment.results import build_results, write_job_tables
from lmm_forget.experiment.stage import run_stage
from lmm_forget.experiment.stage_metrics import build_base_metrics, build_stage_metrics
from lmm_forget.progress import Progress
from lmm_forget.store import CorruptEntryError
from lmm_forget.tracking import open_tracker
from lmm_forget.tracking.tracker import NullTracker, Tracker

MAX_REPAIRS = 100
"""Damaged things that one job puts up with before it gives up on its store."""


def run_experiment(
    config: dict[str, Any], job_dir: Path, progress: Progress, process_group: ProcessGroup = SINGLE_PROCESS
) -> dict[str, Any] | None:
    """Carry out one resolved job and return its results (see docs/results_schema.md); None on ranks but the first.

    Beside the results, the job folder gets answers.parquet, training curves and pictures. Everything that was
    finished before, by this job or by another one with the same store, is taken from there; what is found damaged there
    is moved aside, named, and computed again.
    """
    repairs: list[str] = []
    # First, so that whatever goes wrong is seen there too.
    tracker = process_group.run_on_rank_zero(lambda: open_tracker(config, job_dir)) or NullTracker()
    try:
        while True:
            try:
                results = _run_stages(config, job_dir, progress, repairs, tracker, process_group)
                break
            except CorruptEntryError as error:
                if len(repairs) > MAX_REPAIRS:
                    raise
                progress.start_phase(f"computing again: {error}", 0, "stage")
    except BaseException as error:
        tracker.close(error)
        raise
    if results is None:
        return None
    tracker.log_results(results)
    warnings = [*results["job"].pop("warnings"), *tracker.close()]
    if warnings:
        results["job"]["warnings"] = warnings
    return results


def _run_stages(
    config: dict[str, Any],
    job_dir: Path,
    progress: Progress,
    repairs: list[str],
    tracker: Tracker,
    process_group: ProcessGroup,
) -> dict[str, Any] | None:
    start_time = time.monotonic()
    context = process_group.raise_on_any_rank(
        lambda: build_context(config, job_dir, progress, repairs, tracker, process_group)
    )
    context = resolve_micro_batch(context)
    model_state = context.make_base_state()
    base = evaluate_all(context, model_state, "base: evaluate")
    base_hash, base_seconds = model_state.weights_hash, time.monotonic() - start_time
    base_probes = probe_current_model(context, model_state, "base: probe")
    tracker.log_stage(build_base_metrics(context, base, base_seconds, base_probes))

    stage_results = []
    for index, task in enumerate(config["sequence"]["tasks"], start=1):
        stage_results.append(run_stage(context, model_state, index, task))
        tracker.log_stage(build_stage_metrics(context, stage_results[-1], base.answers))

    if not process_group.is_rank_zero:
        return None
    progress.start_phase("compute metrics", 1, "job")
    results = build_results(context, base_hash, base, stage_results, base_probes)
    results["job"].update(repairs=repairs, warnings=list(context.warnings))
    results["timings"].update(base=base_seconds, base_evaluated=base.num_generated, total=time.monotonic() - start_time)
    write_job_tables(job_dir, context, base.answers, stage_results, results, base_probes)
    context.references.drop_previous()
    return results
