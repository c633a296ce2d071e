"""The report of a sweep as one HTML file that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmm_forget.report.comparison_table import format_p_value
from lmm_forget.report.experiment_settings import ExperimentSetting, group_settings_by_model
from lmm_forget.report.heat_maps import (
    StageMatrix,
    build_heldout_change_matrix,
    build_score_matrix,
    format_cell_colour,
    format_whole_number,
)
from lmm_forget.report.html_templates import encode_script_json, read_template_file, render_template
from lmm_forget.report.job_results import Sweep
from lmm_forget.report.job_rows import (
    FIGURE_TITLES,
    NOTE_TEXTS,
    TESTED_FIGURES,
    JobRow,
    format_parameter_count,
    format_points,
    is_significant,
    list_heldout_tasks,
)
from lmm_forget.report.plots import embed_svg, format_change, plot_targets_per_stage, render_svg
from lmm_forget.report.provenance import describe_provenance
from lmm_forget.report.sample_browser import SampleBrowser
from lmm_forget.report.setting_differences import MAX_SETTINGS, SettingDifference
from lmm_forget.report.sweep_report import SweepReport
from lmm_forget.report.terminal_table import format_interval
from lmm_forget.report.text_formats import (
    format_job_count,
    format_missing_jobs,
    format_parameters_and_rates,
    strip_tiny_prefix,
)
from lmm_forget.report.verdict import find_pareto_front

MAX_HEATMAPS = 12
"""Settings whose heat maps the page shows at most."""
MAX_OPEN_HEATMAPS = 6
"""Heat maps that are shown at once; the others are folded away."""
MAX_DETAILED_JOBS = 12
"""Up to this number of jobs, the page shows a picture of each."""
PLOT_DESCRIPTIONS = {
    "learning_vs_forgetting": "target learning against held-out forgetting, a point per recipe and learning rate",
    "heldout_per_stage": "held-out mean at the base and after each stage",
    "probe_shift": "shift of the output tokens at every stage and milestone",
    "probe_layers": "contribution of attention and MLP of each layer to the change of the logits",
    "probe_vs_forgetting": "shift of the output tokens against held-out forgetting",
}
FIGURE_EXPLANATIONS = {
    "learning": "each skill right after its own stage, against the base",
    "forgetting": "earlier skills at the end, against right after their own stage",
    "final": "mean over the benchmarks never trained on, after the last stage, against the base",
    "worst": "the same after the stage where it is lowest",
    "recovery": "final minus worst",
}


def render_html_report(
    report: SweepReport,
    summary: Mapping[str, Any],
    *,
    svg_documents: Mapping[str, str],
    differences: Sequence[SettingDifference],
    sample_browser: SampleBrowser,
) -> str:
    """The whole page. `svg_documents` are pictures by name; those that `PLOT_DESCRIPTIONS` names are shown."""
    sweep, settings = report.sweep, report.settings
    inline_svgs = {
        name: embed_svg(svg_documents[name], text, name)
        for name, text in PLOT_DESCRIPTIONS.items()
        if name in svg_documents
    }
    groups = group_settings_by_model(settings)
    return render_template(
        "summary.html.j2",
        summary=summary,
        style=read_template_file("summary.css"),
        script=read_template_file("summary.js"),
        settings=[_format_setting_row(setting, group) for group in groups for setting in group],
        headings=FIGURE_TITLES,
        explained=FIGURE_EXPLANATIONS,
        several=any(len(setting.rows) > 1 for setting in settings),
        jobs=[_format_job_row(row) for row in report.rows],
        unfinished=sweep.unfinished,
        missing=format_missing_jobs(len(report.rows), sweep.unfinished) if sweep.unfinished else "",
        orphans=_count_jobs_without_setting(sweep, settings),
        compared=_group_by_reference(differences),
        panels=len(groups),
        by_question=any(difference.basis.startswith("questions") for difference in differences),
        most=MAX_SETTINGS,
        pictures=inline_svgs,
        changes=_build_heat_maps(settings, sweep, is_change=True),
        matrices=_build_heat_maps(settings, sweep, is_change=False),
        hidden_heatmaps=max(0, len(settings) - MAX_HEATMAPS),
        open_heatmaps=MAX_OPEN_HEATMAPS,
        details=_render_job_plots(sweep),
        costs=[_format_cost_row(setting) for setting in settings],
        samples=encode_script_json(sample_browser.data) if sample_browser else "",
        sample_notes=sample_browser.notes,
        made=describe_provenance(sweep),
        subtitle=_format_subtitle(sweep, report.rows),
        about=_describe_experiment(sweep, report.rows),
        tiny=NOTE_TEXTS["tiny"] if NOTE_TEXTS["tiny"] in summary["notes"] else "",
        notes=sweep.notes,
    )


def _format_setting_row(setting: ExperimentSetting, model_settings: Sequence[ExperimentSetting]) -> dict[str, Any]:
    """A row of the table of settings; `model_settings` are all settings of its model."""
    parameters, rates = format_parameters_and_rates(setting.first_row)
    figures = []
    for figure in FIGURE_TITLES:
        estimate = setting.figures[figure]
        spread: list[str] = []
        if estimate["sd"] is not None:
            spread = [
                f"sd {estimate['sd']:.1f}",
                f"{format_points(estimate['min'])} to {format_points(estimate['max'])}",
            ]
        figures.append(
            {
                "name": FIGURE_TITLES[figure],
                "value": format_points(estimate["value"]),
                "mark": is_significant(figure, estimate),
                "markable": figure in TESTED_FIGURES,
                "between": format_interval(estimate),
                "spread": spread,
            }
        )
    return {
        "label": setting.first_row.label,
        "parameters": parameters,
        "rates": rates,
        "jobs": format_job_count(setting),
        "missing": [f"{job.job} ({job.state})" for job in setting.missing],
        "best": len(model_settings) > 1 and setting in find_pareto_front(model_settings),
        "figures": figures,
    }


def _format_job_row(row: JobRow) -> dict[str, Any]:
    return {
        "job": row.job,
        "seed": row.seed,
        "tasks": " → ".join(strip_tiny_prefix(task) for task in row.tasks),
        "figures": [
            (
                format_points(row.figures[figure]["value"]),
                "*" if is_significant(figure, row.figures[figure]) else "",
                format_interval(row.figures[figure]),
            )
            for figure in FIGURE_TITLES
        ],
    }


def _count_jobs_without_setting(sweep: Sweep, settings: Sequence[ExperimentSetting]) -> int:
    """Number of jobs without results whose setting has no finished job either."""
    return len(sweep.unfinished) - sum(len(setting.missing) for setting in settings)


def _group_by_reference(differences: Sequence[SettingDifference]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(reference, its differences as table rows), in the order of the references."""
    rows_by_reference: dict[str, list[dict[str, Any]]] = {}
    for difference in differences:
        rows_by_reference.setdefault(difference.against, []).append(_format_difference_row(difference))
    return list(rows_by_reference.items())


def _format_difference_row(difference: SettingDifference) -> dict[str, Any]:
    def format_cell(entry: Mapping[str, Any] | None) -> tuple[str, str, bool]:
        if entry is None:
            return "n/a", "", False
        p = entry["p_holm"]
        return format_change(entry), "" if p is None else format_p_value(p), p is not None and p < 0.05

    return {
        "name": difference.name,
        "basis": difference.basis,
        "learning": format_cell(difference.learning),
        "final": format_cell(difference.final),
    }


def _build_heat_maps(settings: Sequence[ExperimentSetting], sweep: Sweep, *, is_change: bool) -> list[dict[str, Any]]:
    """The heat maps as tables for the template: every cell with its text, colour and tooltip."""
    build_matrix = build_heldout_change_matrix if is_change else build_score_matrix
    matrices = [
        matrix for setting in settings[:MAX_HEATMAPS] if (matrix := build_matrix(setting, sweep.results)) is not None
    ]
    absolute_values = [
        abs(cell.value) for matrix in matrices for _, cells in matrix.rows for cell in cells if cell.value is not None
    ]
    max_value = max(absolute_values, default=1.0) if is_change else 100.0
    return [_format_heat_map(matrix, max_value, is_change) for matrix in matrices]


def _format_heat_map(matrix: StageMatrix, max_value: float, is_change: bool) -> dict[str, Any]:
    return {
        "title": matrix.title,
        "note": matrix.note,
        "columns": matrix.columns,
        "trained": matrix.num_trained_rows,
        "rows": [
            (
                name,
                [
                    {
                        "text": format_whole_number(cell.value, with_sign=is_change) or "n/a",
                        "colour": format_cell_colour(cell.value, max_value, is_change=is_change),
                        "tip": cell.tooltip,
                        "trained": cell.is_trained_task,
                    }
                    for cell in cells
                ],
            )
            for name, cells in matrix.rows
        ],
    }


def _render_job_plots(sweep: Sweep) -> list[tuple[str, str]]:
    if len(sweep.results) > MAX_DETAILED_JOBS:
        return []
    return [
        (
            job,
            embed_svg(
                render_svg(plot_targets_per_stage(results)),
                f"target scores per stage of {job}",
                f"targets{place}",
            ),
        )
        for place, (job, results) in enumerate(sweep.results.items())
    ]


def _format_cost_row(setting: ExperimentSetting) -> dict[str, str]:
    costs = [row.cost for row in setting.rows]

    def compute_mean(name: str) -> float | None:
        values = [cost[name] for cost in costs if cost[name] is not None]
        return sum(values) / len(values) if values else None  # type: ignore[arg-type]

    trainable, parameters = setting.first_row.trainable, compute_mean("parameters")
    share = f" ({100 * trainable / parameters:.2g} %)" if trainable and parameters else ""
    return {
        "name": setting.name,
        "parameters": f"{format_parameter_count(trainable)}{share}",
        "delta": _format_binary_size(compute_mean("delta_bytes")),
        "state": _format_binary_size(compute_mean("state_bytes")),
        "memory": _format_binary_size(compute_mean("peak_memory_bytes")),
        "steps": "n/a" if compute_mean("steps") is None else f"{compute_mean('steps'):,.0f}",
        "train": _format_duration(compute_mean("train_seconds")),
        "evaluate": _format_duration(compute_mean("evaluate_seconds")),
        "total": _format_duration(compute_mean("total_seconds")),
    }


def _format_binary_size(number: float | None) -> str:
    if number is None:
        return "n/a"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"


def _format_duration(number: float | None) -> str:
    if number is None:
        return "n/a"
    if number < 60:
        return f"{number:.1f} s"
    hours, minutes = divmod(round(number) // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {round(number) % 60:02d} s"


def _format_subtitle(sweep: Sweep, rows: Sequence[JobRow]) -> str:
    if not rows:
        return "no job has finished yet"
    models = ", ".join(dict.fromkeys(str(row.model) for row in rows if row.model))
    tasks = {row.tasks for row in rows}
    order = " → ".join(strip_tiny_prefix(task) for task in rows[0].tasks) if len(tasks) == 1 else f"{len(tasks)} orders"
    seeds = sorted({row.seed for row in rows if row.seed is not None})
    jobs_text = f"{len(rows)} job{'s' if len(rows) > 1 else ''} finished"
    return " · ".join(
        part
        for part in (
            models,
            f"trained on {order}",
            f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds" if seeds else "",
            jobs_text + (f", {len(sweep.unfinished)} without results" if sweep.unfinished else ""),
        )
        if part
    )


def _describe_experiment(sweep: Sweep, rows: Sequence[JobRow]) -> str:
    """Two sentences that explain the experiment to a new reader."""
    if not rows:
        return ""
    num_heldout = len(list_heldout_tasks(next(iter(sweep.results.values()))))
    num_tasks = max(len(row.tasks) for row in rows)
    training_sentence = f"{num_tasks} skills were trained one after another" if num_tasks > 1 else "A skill was trained"
    evaluation_sentence = (
        f"; before and after each, the model was evaluated on {num_heldout} benchmarks that were never trained"
        if num_heldout
        else ""
    )
    return (
        f"{training_sentence}, by each recipe: a choice of which parameters may move{evaluation_sentence}. "
        "What it learned shows in the "
        f"skills, what it forgot in {'the held-out benchmarks and ' if num_heldout else ''}the earlier skills."
    )
