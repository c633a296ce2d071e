"""Everything that `lmm-forget why` leaves in a sweep's folder, written in one go from its probed jobs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lmm_forget.errors import DataError
from lmm_forget.files import write_atomic
from lmm_forget.metrics.forgetting_statements import judge_forgetting_statements
from lmm_forget.metrics.shift_correlation import correlate_shift_with_forgetting
from lmm_forget.report.experiment_settings import group_rows_by_setting
from lmm_forget.report.flip_examples import (
    count_flips,
    render_flip_markdown,
    render_flip_page,
    select_flip_examples,
)
from lmm_forget.report.job_results import Sweep, load_sweep, require_readable_results
from lmm_forget.report.job_rows import build_job_rows
from lmm_forget.report.plots import save_figure
from lmm_forget.report.probe_plots import plot_probe_readings
from lmm_forget.report.shift_report import Findings, plot_shift_scatter, render_shift_report


@dataclass(frozen=True)
class ShiftSummary:
    """How output shift and forgetting go together in a sweep.

    `correlations` come from `correlate_shift_with_forgetting`, `statements` from `judge_forgetting_statements`,
    `flip_counts` from `count_flips`. `skipped_jobs` names jobs that are in none of them, each with the reason.
    """

    correlations: Findings
    statements: list[dict[str, Any]]
    flip_counts: list[dict[str, Any]]
    skipped_jobs: list[str]

    def to_json(self) -> str:
        """The content of connection.json."""
        content = {**self.correlations, "statements": self.statements, "left_out": self.skipped_jobs}
        return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_shift_summary(folder: Path, max_examples: int) -> ShiftSummary:
    """Write why.md, connection.json, flips.{html,md} (at most `max_examples` per job) and the pictures into `folder`.

    Raises DataError if no finished job has probes, or a record or its flips.parquet cannot be read.
    """
    sweep = load_sweep(folder)
    require_readable_results(sweep)
    probed_jobs = _select_probed_jobs(sweep, folder)
    correlations = correlate_shift_with_forgetting(list(probed_jobs.values()))
    summary = ShiftSummary(
        correlations,
        judge_forgetting_statements(correlations),
        count_flips(probed_jobs),
        [f"{job.job} ({job.state})" for job in sweep.unfinished]
        + [f"{job} (without probes)" for job in sweep.results if job not in probed_jobs],
    )
    # Examples come first: the file that they are read from may be damaged, and then nothing is written.
    examples_by_job = {
        job: select_flip_examples(sweep.folders[job], results, max_examples) for job, results in probed_jobs.items()
    }
    write_atomic(folder / "flips.md", render_flip_markdown(examples_by_job))
    write_atomic(folder / "flips.html", render_flip_page(examples_by_job))
    write_atomic(folder / "connection.json", summary.to_json())
    text = render_shift_report(sweep.name, correlations, summary.statements, summary.flip_counts, summary.skipped_jobs)
    write_atomic(folder / "why.md", text)
    for name, figure in _plot_figures(probed_jobs, correlations).items():
        save_figure(figure, folder / name)
    return summary


def _select_probed_jobs(sweep: Sweep, folder: Path) -> dict[str, dict[str, Any]]:
    """Results of the jobs that ran with a probe. Raises DataError without any, and for a stage without probes."""
    probed_jobs = {job: results for job, results in sweep.results.items() if "probes" in results}
    for job, results in probed_jobs.items():
        unprobed_tasks = [stage["task"] for stage in results["stages"] if "probes" not in stage]
        if unprobed_tasks:
            raise DataError(f"{folder}: {job} has no probes of the stage that trained {unprobed_tasks[0]}")
    if not probed_jobs:
        raise DataError(f"{folder}: no finished job has probes; run them with probe=output_shift or probe=both")
    return probed_jobs


def _plot_figures(results_by_job: dict[str, dict[str, Any]], correlations: Findings) -> dict[str, Figure]:
    """Every picture, by the name of its files."""
    figures = plot_probe_readings(results_by_job, group_rows_by_setting(build_job_rows(results_by_job.values())))
    figures.pop("probe_vs_forgetting", None)  # the scatter plot below shows milestones as well
    scatter_plot = plot_shift_scatter(correlations)
    if scatter_plot is not None:
        figures["connection"] = scatter_plot
    return figures
