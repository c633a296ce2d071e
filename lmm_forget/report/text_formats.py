"""The summary as Markdown, CSV and LaTeX, for other programs and for papers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from lmm_forget.report.experiment_settings import ExperimentSetting
from lmm_forget.report.job_results import UnfinishedJob
from lmm_forget.report.job_rows import (
    FIGURE_TITLES,
    TINY_PREFIX,
    JobRow,
    format_parameter_count,
    format_points,
    is_significant,
)
from lmm_forget.report.sweep_report import SweepReport

_COST_COLUMNS = (
    "delta_bytes",
    "state_bytes",
    "peak_memory_bytes",
    "steps",
    "train_seconds",
    "evaluate_seconds",
    "total_seconds",
)


def render_markdown(report: SweepReport, summary: Mapping[str, Any], picture_names: Sequence[str] = ()) -> str:
    """The summary as GitHub Markdown: question and answer, a table of settings, jobs, pictures, what is missing.

    `picture_names` are the names of the .png files beside it, without their ending.
    """
    rows, settings, unfinished = report.rows, report.settings, report.sweep.unfinished
    lines = [
        f"# {summary['name']}",
        "",
        f"**{summary['question']}** {_format_markdown_list(summary['answer'])}",
        "",
    ]
    if unfinished:
        lines += [f"{format_missing_jobs(len(rows), unfinished)}; they are listed below and in no mean.", ""]
    if settings:
        headings = ["recipe", "jobs", "trainable parameters", "learning rate", *FIGURE_TITLES.values()]
        lines += [_format_markdown_row(headings), "|---|---:|---:|---:|" + "---:|" * len(FIGURE_TITLES)]
        lines += [
            _format_markdown_row(
                [
                    s.first_row.label,
                    format_job_count(s),
                    *format_parameters_and_rates(s.first_row),
                    *_format_figure_texts(s),
                ]
            )
            for s in settings
        ]
        lines += ["", *(f"{note}  " for note in summary["notes"]), ""]
    if any(len(setting.rows) > 1 for setting in settings):
        lines += [
            "## Jobs",
            "",
            _format_markdown_row(["job", "seed", *FIGURE_TITLES.values()]),
            "|---|---:|" + "---:|" * len(FIGURE_TITLES),
        ]
        lines += [
            _format_markdown_row(
                [
                    row.job,
                    str(row.seed),
                    *(format_estimate(figure, row.figures[figure]) for figure in FIGURE_TITLES),
                ]
            )
            for row in rows
        ]
        lines += [""]
    for name in picture_names:
        lines += [f"![{name.replace('_', ' ')}]({name}.png)", ""]
    if unfinished:
        lines += ["## Jobs without results", ""]
        lines += [f"- `{job.job}`: {job.state}{_format_error_suffix(job.error)}" for job in unfinished] + [""]
    return "\n".join(lines)


def render_csv(rows: Sequence[JobRow], unfinished: Sequence[UnfinishedJob]) -> str:
    """A line per job, with unrounded numbers; jobs without results have their state and empty figures."""
    figures = [f"{figure}{part}" for figure in FIGURE_TITLES for part in ("", "_low", "_high")]
    stages = max((len(row.heldout_per_stage) for row in rows), default=0)
    head = [
        "job",
        "state",
        "model",
        "recipe",
        "layers",
        "extra",
        "trainable",
        "learning_rate",
        "vision_learning_rate",
    ]
    head += ["sequence", "tasks", "seed", *figures, "heldout_base"]
    head += [f"heldout_change_stage_{stage}" for stage in range(1, stages + 1)] + list(_COST_COLUMNS)
    out = io.StringIO()
    writer = csv.DictWriter(out, head, lineterminator="\n", restval="")
    writer.writeheader()
    for row in rows:
        line: dict[str, Any] = {
            name: getattr(row, name)
            for name in (
                "job",
                "model",
                "recipe",
                "layers",
                "trainable",
                "learning_rate",
                "vision_learning_rate",
            )
        }
        line |= {"state": "done", "extra": "; ".join(row.extra), "sequence": row.sequence, "seed": row.seed}
        line |= {"tasks": " ".join(row.tasks), "heldout_base": row.heldout_base}
        for figure in FIGURE_TITLES:
            for part, key in (("", "value"), ("_low", "low"), ("_high", "high")):
                line[f"{figure}{part}"] = row.figures[figure][key]
        for stage, change in enumerate(row.heldout_per_stage, start=1):
            line[f"heldout_change_stage_{stage}"] = change["value"]
        writer.writerow(line | {name: row.cost[name] for name in _COST_COLUMNS})
    for job in unfinished:
        config = job.config or {}
        recipe, sequence = config.get("recipe") or {}, config.get("sequence") or {}
        tasks = " ".join(sequence.get("tasks") or [])
        line = {"job": job.job, "state": job.state, "recipe": recipe.get("name"), "tasks": tasks}
        writer.writerow(line | {"seed": config.get("seed")})
    return out.getvalue()


def render_latex(settings: Sequence[ExperimentSetting], notes: Sequence[str]) -> str:
    """A booktabs table of the settings, to be read in with \\input; needs the packages booktabs and amsmath."""
    columns = ("learning", "forgetting", "final", "worst")
    has_several_jobs = any(len(setting.rows) > 1 for setting in settings)
    head = [
        "% needs \\usepackage{booktabs}",
        *(f"% {note}" for note in notes),
        "\\begin{tabular}{l" + ("r" if has_several_jobs else "") + "rr" + "r" * len(columns) + "}",
        "\\toprule",
        " & ".join(
            ["recipe", *(["jobs"] if has_several_jobs else []), "parameters", "learning rate"]
            + [_escape_latex(FIGURE_TITLES[figure]) for figure in columns]
        )
        + r" \\",
        "\\midrule",
    ]
    body = []
    for setting in settings:
        cells = [
            _escape_latex(setting.first_row.label),
            *([str(len(setting.rows))] if has_several_jobs else []),
        ]
        cells += [
            _escape_latex(format_parameter_count(setting.first_row.trainable)),
            _escape_latex(setting.first_row.learning_rates),
        ]
        cells += [_format_latex_estimate(figure, setting.figures[figure]) for figure in columns]
        body.append(" & ".join(cells) + r" \\")
    return "\n".join([*head, *body, "\\bottomrule", "\\end{tabular}", ""])


def format_missing_jobs(num_finished: int, unfinished: Sequence[UnfinishedJob]) -> str:
    """`2 of 6 jobs have no results (1 failed, 1 running)`."""
    states: dict[str, int] = {}
    for job in unfinished:
        states[job.state] = states.get(job.state, 0) + 1
    states_text = ", ".join(f"{number} {state}" for state, number in states.items())
    verb = "has" if len(unfinished) == 1 else "have"
    return f"{len(unfinished)} of {num_finished + len(unfinished)} jobs {verb} no results ({states_text})"


def format_job_count(setting: ExperimentSetting) -> str:
    """`3`, or `2 of 3` if jobs of the setting are missing."""
    return str(len(setting.rows)) + (f" of {len(setting.rows) + len(setting.missing)}" if setting.missing else "")


def format_parameters_and_rates(row: JobRow) -> list[str]:
    """[trainable parameters, learning rates] as text."""
    return [format_parameter_count(row.trainable), row.learning_rates]


def format_estimate(figure: str, estimate: Mapping[str, Any]) -> str:
    """`-79.9* [-81.6, -78.1]`; the * marks an interval that excludes zero."""
    if estimate["low"] is None:
        return format_points(estimate["value"])
    mark = "*" if is_significant(figure, estimate) else ""
    return (
        f"{format_points(estimate['value'])}{mark} [{format_points(estimate['low'])}, "
        f"{format_points(estimate['high'])}]"
    )


def strip_tiny_prefix(task: str) -> str:
    """A task's name without `TINY_PREFIX`."""
    return task.removeprefix(TINY_PREFIX)


def _format_figure_texts(setting: ExperimentSetting) -> list[str]:
    cells = []
    for figure in FIGURE_TITLES:
        estimate = setting.figures[figure]
        spread = "" if estimate["sd"] is None else f" (sd {estimate['sd']:.1f})"
        cells.append(format_estimate(figure, estimate) + spread)
    return cells


def _format_markdown_list(text: str) -> str:
    """Several lines as a Markdown list, one as it is."""
    lines = text.split("\n")
    return text if len(lines) == 1 else "\n" + "\n".join(f"\n- {line}" for line in lines)


def _format_markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _format_error_suffix(error: str | None) -> str:
    return f" - {' '.join(error.split())}" if error else ""


def _escape_latex(text: str) -> str:
    for character in "\\&%$#_{}":
        text = text.replace(character, f"\\{character}" if character != "\\" else "/")
    return text


def _format_latex_estimate(figure: str, estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "--"
    mark = "^{*}" if is_significant(figure, estimate) else ""
    value = f"${format_points(estimate['value'])}{mark}$"
    if estimate["low"] is None:
        return value
    return f"{value} {{\\scriptsize $[{format_points(estimate['low'])},\\,{format_points(estimate['high'])}]$}}"
