"""The report as one HTML file: no other file, no network, nothing but what the records say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lmm_forget.report.comparison_table import format_p_value
from lmm_forget.report.experiment_settings import ExperimentSetting, group_settings_by_model
from lmm_forget.report.heat_maps import (
    StageMatrix,
    build_heldout_change_matrix,
    build_score_matrix,
    format_cell_colour,
    format_whole_number,
)
from lmm_forget.report.job_results import Sweep
from lmm_forget.report.job_rows import (
    FIGURE_TITLES,
    NOTE_TEXTS,
    TESTED_FIGURES,
    JobRow,
    extract_setting_fields,
    format_parameter_count,
    format_points,
    is_significant,
    list_heldout_tasks,
)
from lmm_forget.report.plots import embed_svg, format_change, plot_targets_per_stage, render_svg
from lmm_forget.report.sample_browser import SampleBrowser
from lmm_forget.report.setting_differences import MAX_SETTINGS, SettingDifference
from lmm_forget.report.sweep_table import format_interval
from lmm_forget.report.templates import create_jinja_environment, read_template
from lmm_forget.report.text_formats import (
    format_job_count,
    format_missing_jobs,
    format_parameters_and_rates,
    strip_tiny_prefix,
)
from lmm_forget.report.verdict import find_pareto_front

MAX_HEATMAPS = 12
"""Settings whose heat maps a page carries."""
MAX_OPEN_HEATMAPS = 6
MAX_DETAILED_JOBS = 12
"""Jobs whose own pictures a page carries."""
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
    summary: Mapping[str, Any],
    sweep: Sweep,
    rows: Sequence[JobRow],
    settings: Sequence[ExperimentSetting],
    *,
    svg_documents: Mapping[str, str],
    differences: Sequence[SettingDifference],
    sample_browser: SampleBrowser,
) -> str:
    """The whole document. `figures` are SVG documents by name; those that `PLOT_DESCRIPTIONS` names are shown."""
    inline_svgs = {
        name: embed_svg(svg_documents[name], text, name)
        for name, text in PLOT_DESCRIPTIONS.items()
        if name in svg_documents
    }
    groups = group_settings_by_model(settings)
    return (
        create_jinja_environment()
        .get_template("summary.html.j2")
        .render(
            summary=summary,
            style=read_template("summary.css"),
            script=read_template("summary.js"),
            settings=[_format_setting_row(setting, group) for group in groups for setting in group],
            headings=FIGURE_TITLES,
            explained=FIGURE_EXPLANATIONS,
            several=any(len(setting.rows) > 1 for setting in settings),
            jobs=[_format_job_row(row) for row in rows],
            unfinished=sweep.unfinished,
            missing=format_missing_jobs(len(rows), sweep.unfinished) if sweep.unfinished else "",
            orphans=_count_jobs_without_setting(sweep, settings),
            compared=_group_by_reference(differences),
            panels=len(groups),
            by_question=any(each.basis.startswith("questions") for each in differences),
            most=MAX_SETTINGS,
            pictures=inline_svgs,
            changes=_build_heat_maps(settings, sweep, is_change=True),
            matrices=_build_heat_maps(settings, sweep, is_change=False),
            hidden_heatmaps=max(0, len(settings) - MAX_HEATMAPS),
            open_heatmaps=MAX_OPEN_HEATMAPS,
            details=_render_job_plots(sweep),
            costs=[_format_cost_row(setting) for setting in settings],
            samples=_encode_script_json(sample_browser.data) if sample_browser else "",
            sample_notes=sample_browser.notes,
            made=_describe_provenance(sweep, settings),
            subtitle=_format_subtitle(sweep, rows),
            about=_describe_experiment(sweep, rows),
            tiny=NOTE_TEXTS["tiny"] if NOTE_TEXTS["tiny"] in summary["notes"] else "",
            notes=sweep.notes,
        )
    )


def _encode_script_json(data: Any) -> str:
    """JSON that cannot end the <script> element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _format_setting_row(setting: ExperimentSetting, model_settings: Sequence[ExperimentSetting]) -> dict[str, Any]:
    """A row of the table; `group` are all settings of its model."""
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
    """Jobs without results of settings that have no result at all."""
    return len(sweep.unfinished) - sum(len(setting.missing) for setting in settings)


def _group_by_reference(differences: Sequence[SettingDifference]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The differences to each reference, in the order of references."""
    rows_by_reference: dict[str, list[dict[str, Any]]] = {}
    for each in differences:
        rows_by_reference.setdefault(each.against, []).append(_format_difference_row(each))
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
    """Heat maps as tables: every cell with its text, colour and tip."""
    build_matrix = build_heldout_change_matrix if is_change else build_score_matrix
    matrices = [m for setting in settings[:MAX_HEATMAPS] if (m := build_matrix(setting, sweep.results)) is not None]
    absolute_values = [
        abs(cell.value) for m in matrices for _, cells in m.rows for cell in cells if cell.value is not None
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
            f"taught {order}",
            f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds" if seeds else "",
            jobs_text + (f", {len(sweep.unfinished)} without results" if sweep.unfinished else ""),
        )
        if part
    )


def _describe_experiment(sweep: Sweep, rows: Sequence[JobRow]) -> str:
    """What was done, for somebody who meets such a page for the first time."""
    if not rows:
        return ""
    num_heldout = len(list_heldout_tasks(next(iter(sweep.results.values()))))
    num_tasks = max(len(row.tasks) for row in rows)
    training_sentence = f"{num_tasks} skills were taught, one after another" if num_tasks > 1 else "A skill was taught"
    evaluation_sentence = (
        f"; before and after each, the model answered {num_heldout} benchmarks that were never taught"
        if num_heldout
        else ""
    )
    return (
        f"{training_sentence}, by each recipe: a choice of which parameters may move{evaluation_sentence}. "
        "What it learned shows in the "
        f"skills, what it forgot in {'the held-out benchmarks and ' if num_heldout else ''}the earlier skills."
    )


def _describe_provenance(sweep: Sweep, settings: Sequence[ExperimentSetting]) -> dict[str, Any]:
    """How the numbers came about: what all jobs share, what differs, versions, data, stage keys."""
    results = sweep.results
    setting_fields = {
        job: extract_setting_fields(found["config"], ()) | {"seed": found["config"].get("seed")}
        for job, found in results.items()
    }
    names = list(dict.fromkeys(name for each in setting_fields.values() for name in each if name != "trained"))
    differing_names = [name for name in names if len({str(each.get(name)) for each in setting_fields.values()}) > 1]
    whole_configs = [found["config"] for found in results.values()]
    shared = _intersect_configs(whole_configs) if whole_configs else {}
    versions: dict[str, list[str]] = {}
    for job_results in results.values():
        for name, version in (job_results.get("versions") or {}).items():
            known_values = versions.setdefault(name, [])
            if version not in known_values:
                known_values.append(version)
    data: dict[tuple[str, str], list[str]] = {}
    for job_results in results.values():
        for task, entry in (job_results.get("data") or {}).items():
            for use, about in entry.items():
                data_description = f"{about['samples']:,} of {about['split']}, {about['fingerprint']}"
                known_values = data.setdefault((task, use), [])
                if data_description not in known_values:
                    known_values.append(data_description)
    if "git" in versions:  # of this code, not of the program
        versions["the code (git commit)"] = versions.pop("git")
    return {
        "shared": yaml.safe_dump(shared, sort_keys=False, allow_unicode=True, width=100) if shared else "",
        "differ": differing_names[:20],
        "values": [
            (job, [_format_value(setting_fields[job].get(name)) for name in differing_names[:20]]) for job in results
        ],
        "versions": [(name, ", ".join(known)) for name, known in versions.items()],
        "mixed": [name for name, known in versions.items() if len(known) > 1],
        "data": [(task, use, known) for (task, use), known in data.items()],
        "jobs": [
            {
                "job": job,
                "hash": found["job"].get("hash"),
                "base": str(found["base"].get("weights_hash") or "")[:16],
                "stages": [(stage["task"], str(stage.get("key") or "")[:16]) for stage in found["stages"]],
            }
            for job, found in results.items()
        ],
    }


def _format_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _intersect_configs(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all configurations have in common, in the layout of the first."""
    first_config, *others = configs
    shared_config: dict[str, Any] = {}
    for key, value in first_config.items():
        if not all(key in other_config for other_config in others):
            continue
        values = [other_config[key] for other_config in others]
        if isinstance(value, Mapping) and all(isinstance(each, Mapping) for each in values):
            inner = _intersect_configs([value, *values])
            if inner or not value:
                shared_config[key] = inner
        elif all(each == value for each in values):
            shared_config[key] = value
    return shared_config
