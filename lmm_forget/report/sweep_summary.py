"""Everything that people look at, written in one go: the page, its pictures, and the summary in four other formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lmm_forget.files import write_atomic
from lmm_forget.report.experiment_settings import (
    ExperimentSetting,
    group_rows_by_setting,
    summarize_seed_spread,
)
from lmm_forget.report.heat_maps import build_heldout_change_matrix, build_score_matrix, plot_heat_maps
from lmm_forget.report.html_report import render_html_report
from lmm_forget.report.job_results import RESULTS_SCHEMA, Sweep, load_sweep, require_readable_results
from lmm_forget.report.job_rows import JobRow, build_job_rows, list_report_notes
from lmm_forget.report.plots import (
    plot_heldout_per_stage,
    plot_learning_vs_forgetting,
    render_svg,
    save_figure,
)
from lmm_forget.report.probe_plots import plot_probe_readings
from lmm_forget.report.sample_browser import build_sample_browser
from lmm_forget.report.setting_differences import SettingDifference, compare_settings_to_reference
from lmm_forget.report.shared_suite import restrict_to_shared_suite
from lmm_forget.report.text_formats import render_csv, render_latex, render_markdown
from lmm_forget.report.verdict import format_sweep_answer, format_sweep_question


def write_sweep_summary(folder: Path) -> dict[str, Any]:
    """Write summary.{html,json,md,csv,tex} and every picture of a sweep (or single job) into `folder`.

    Returns what summary.json holds. Jobs without results are named with their state and error, and are in no mean.
    Raises DataError if the folder holds no job.
    """
    sweep = load_sweep(folder)
    require_readable_results(sweep)
    sweep = restrict_to_shared_suite(sweep)
    rows = build_job_rows(sweep.results.values())
    settings = group_rows_by_setting(rows, sweep.unfinished)
    differences_found = compare_settings_to_reference(sweep, settings)
    summary = _build_summary(sweep, rows, settings, differences_found)
    figures_by_name = _plot_sweep_figures(sweep, rows, settings)
    svg_documents = {name: render_svg(figure) for name, figure in figures_by_name.items()}
    for name, figure in figures_by_name.items():
        save_figure(figure, folder / name, svg_documents[name])
    write_atomic(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(
        folder / "summary.md",
        render_markdown(summary, rows, settings, sweep.unfinished, list(figures_by_name)),
    )
    write_atomic(folder / "summary.csv", render_csv(rows, sweep.unfinished))
    if settings:
        write_atomic(folder / "summary.tex", render_latex(settings, summary["notes"]))
    samples = build_sample_browser(sweep, settings)
    write_atomic(
        folder / "summary.html",
        render_html_report(
            summary,
            sweep,
            rows,
            settings,
            svg_documents=svg_documents,
            differences=differences_found,
            sample_browser=samples,
        ),
    )
    return summary


def _plot_sweep_figures(
    sweep: Sweep, rows: Sequence[JobRow], settings: Sequence[ExperimentSetting]
) -> dict[str, Figure]:
    """Every picture of the sweep, by the name of its files."""
    if not rows:
        return {}
    figures = {
        "learning_vs_forgetting": plot_learning_vs_forgetting(rows),
        "heldout_per_stage": plot_heldout_per_stage(rows),
    }
    changes = [m for setting in settings if (m := build_heldout_change_matrix(setting, sweep.results))]
    if changes:
        figures["stage_by_benchmark"] = plot_heat_maps(
            changes, "Change of each held-out benchmark since the base (points)", is_change=True
        )
    figures["stage_by_task"] = plot_heat_maps(
        [build_score_matrix(setting, sweep.results) for setting in settings],
        "Score of every task after each stage (points; bold: just taught)",
        is_change=False,
    )
    return figures | plot_probe_readings(sweep.results, settings)


def _build_summary(
    sweep: Sweep,
    rows: Sequence[JobRow],
    settings: Sequence[ExperimentSetting],
    differences: Sequence[SettingDifference],
) -> dict[str, Any]:
    return {
        "schema": RESULTS_SCHEMA,
        "name": sweep.name,
        "question": format_sweep_question(settings),
        "answer": format_sweep_answer(settings, differences),
        "jobs": [_row_to_json(row) for row in rows],
        "spread": summarize_seed_spread(rows),
        "differences": [asdict(each) for each in differences],
        "unfinished": [{"job": job.job, "state": job.state, "error": job.error} for job in sweep.unfinished],
        "notes": [*(list_report_notes(sweep.results.values()) if rows else []), *sweep.notes],
    }


def _row_to_json(row: JobRow) -> dict[str, Any]:
    """A row as plain JSON."""
    entry: dict[str, Any] = asdict(row)
    del entry["setting"], entry["content"], entry["named_model"]
    entry["tasks"], entry["extra"] = list(row.tasks), list(row.extra)
    entry["figures"] = {figure: dict(estimate) for figure, estimate in row.figures.items()}
    entry["heldout_per_stage"] = [dict(stage) for stage in row.heldout_per_stage]
    return entry
