"""Writes the summary of a sweep: the HTML page, its pictures, and summary.{json,md,csv,tex}."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from matplotlib.figure import Figure

from lmm_forget.files import write_atomic
from lmm_forget.report.experiment_settings import summarize_seed_spread
from lmm_forget.report.heat_maps import build_heldout_change_matrix, build_score_matrix, plot_heat_maps
from lmm_forget.report.html_report import render_html_report
from lmm_forget.report.job_rows import JobRow
from lmm_forget.report.plots import (
    plot_heldout_per_stage,
    plot_learning_vs_forgetting,
    render_svg,
    save_figure,
)
from lmm_forget.report.probe_plots import plot_probe_readings
from lmm_forget.report.sample_browser import build_sample_browser
from lmm_forget.report.setting_differences import SettingDifference, compare_settings_to_reference
from lmm_forget.report.sweep_report import SweepReport
from lmm_forget.report.text_formats import render_csv, render_latex, render_markdown
from lmm_forget.report.verdict import format_sweep_answer, format_sweep_question
from lmm_forget.store.record_schemas import RESULTS_SCHEMA


def write_sweep_summary(report: SweepReport) -> dict[str, Any]:
    """Write summary.{html,json,md,csv,tex} and every picture of a sweep (or single job) into its folder.

    Returns what summary.json holds. Jobs without results are named with their state and error, and are in no mean.
    """
    folder = report.folder
    differences = compare_settings_to_reference(report.sweep, report.settings)
    summary = _build_summary(report, differences)
    figures = _plot_sweep_figures(report)
    svg_documents = {name: render_svg(figure) for name, figure in figures.items()}
    for name, figure in figures.items():
        save_figure(figure, folder / name, svg_documents[name])
    write_atomic(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(folder / "summary.md", render_markdown(report, summary, list(figures)))
    write_atomic(folder / "summary.csv", render_csv(report.rows, report.sweep.unfinished))
    if report.settings:
        write_atomic(folder / "summary.tex", render_latex(report.settings, summary["notes"]))
    page = render_html_report(
        report,
        summary,
        svg_documents=svg_documents,
        differences=differences,
        sample_browser=build_sample_browser(report.sweep, report.settings),
    )
    write_atomic(folder / "summary.html", page)
    return summary


def _plot_sweep_figures(report: SweepReport) -> dict[str, Figure]:
    """Every picture of the sweep, by the name of its files."""
    results, settings = report.sweep.results, report.settings
    if not settings:
        return {}
    figures = {
        "learning_vs_forgetting": plot_learning_vs_forgetting(settings),
        "heldout_per_stage": plot_heldout_per_stage(settings),
    }
    changes = [matrix for setting in settings if (matrix := build_heldout_change_matrix(setting, results)) is not None]
    if changes:
        figures["stage_by_benchmark"] = plot_heat_maps(
            changes, "Change of each held-out benchmark since the base (points)", is_change=True
        )
    figures["stage_by_task"] = plot_heat_maps(
        [build_score_matrix(setting, results) for setting in settings],
        "Score of every task after each stage (points; bold: just trained)",
        is_change=False,
    )
    return figures | plot_probe_readings(results, settings)


def _build_summary(report: SweepReport, differences: Sequence[SettingDifference]) -> dict[str, Any]:
    unfinished = report.sweep.unfinished
    return {
        "schema": RESULTS_SCHEMA,
        "name": report.sweep.name,
        "question": format_sweep_question(report.settings),
        "answer": format_sweep_answer(report.settings, differences),
        "jobs": [_row_to_json(row) for row in report.rows],
        "spread": summarize_seed_spread(report.settings),
        "differences": [asdict(difference) for difference in differences],
        "unfinished": [{"job": job.job, "state": job.state, "error": job.error} for job in unfinished],
        "notes": report.notes,
    }


def _row_to_json(row: JobRow) -> dict[str, Any]:
    """A row as plain JSON."""
    entry: dict[str, Any] = asdict(row)
    del entry["setting"], entry["content"], entry["named_model"]
    entry["tasks"], entry["extra"] = list(row.tasks), list(row.extra)
    entry["figures"] = {figure: dict(estimate) for figure, estimate in row.figures.items()}
    entry["heldout_per_stage"] = [dict(stage) for stage in row.heldout_per_stage]
    return entry
