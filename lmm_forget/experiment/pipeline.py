"""The corridor: base evaluation, stage 1 … stage n, results. Read from top to bottom."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lmm_forget.distributed.process_group import ALONE, Ranks
from lmm_forget.experiment.context import lay_ground, settle_micro_batch
from lmm_forget.experiment.results import assemble, write_tables
from lmm_forget.experiment.stage import ask_all, look, run_stage
from lmm_forget.experiment.stage_metrics import measured_base, measured_stage
from lmm_forget.progress import Progress
from lmm_forget.tracking.tracker import Null, Tracker

MOST_REPAIRS = 100
"""Damaged things that one job puts up with before it gives up on its store."""


def run(
    config: dict[str, Any], job_dir: Path, progress: Progress, ranks: Ranks = ALONE
) -> dict[str, Any] | None:
    """Carry out one resolved job and return its results (see docs/results_schema.md); None on ranks but the first.

    Beside the results, the job folder gets answers.parquet, training curves and pictures. Everything that was
    finished before, by this job or by another one with the same store, is taken from there; what is found damaged there
    is moved aside, named, and computed again.
    """
    from lmm_forget.store import Damaged
    from lmm_forget.tracking import open_tracker

    repairs: list[str] = []
    # First, so that whatever goes wrong is seen there too.
    tracker = ranks.only_first(lambda: open_tracker(config, job_dir)) or Null()
    try:
        while True:
            try:
                results = _corridor(config, job_dir, progress, repairs, tracker, ranks)
                break
            except Damaged as error:
                if len(repairs) > MOST_REPAIRS:
                    raise
                progress.phase(f"computing again: {error}", 0, "stage")
    except BaseException as error:
        tracker.close(error)
        raise
    if results is None:
        return None
    tracker.results(results)
    notices = [*results["job"].pop("notices"), *tracker.close()]
    if notices:
        results["job"]["notices"] = notices
    return results


def _corridor(
    config: dict[str, Any],
    job_dir: Path,
    progress: Progress,
    repairs: list[str],
    tracker: Tracker,
    ranks: Ranks,
) -> dict[str, Any] | None:
    started = time.monotonic()
    ground = ranks.together(lambda: lay_ground(config, job_dir, progress, repairs, tracker, ranks))
    settle_micro_batch(ground)
    base, asked = ask_all(ground, "base: ask everything")
    base_hash, base_seconds = ground.weights, time.monotonic() - started
    base_look = look(ground, "base: probe")
    tracker.stage(measured_base(ground, base, base_seconds, base_look))

    stages = []
    for index, task in enumerate(config["sequence"]["tasks"], start=1):
        stages.append(run_stage(ground, index, task))
        tracker.stage(measured_stage(ground, stages[-1], base))

    if not ranks.first:
        return None
    progress.phase("figures of merit", 1, "job")
    results = assemble(ground, base_hash, base, stages, base_look)
    results["job"].update(repairs=repairs, notices=ground.notices)
    results["timings"].update(base=base_seconds, base_asked=asked, total=time.monotonic() - started)
    write_tables(job_dir, ground, base, stages, results, base_look)
    ground.settle_references()
    return results
