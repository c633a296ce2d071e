"""Summaries of sweeps and jobs: summary.json for programs, summary.md for notes, summary.html for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from lmm_forget.report.figures import inline, job_figures, svg, sweep_figures, targets_per_stage
from lmm_forget.report.load import SCHEMA, Sweep, load_results, load_sweep
from lmm_forget.report.rows import FIGURES, Row, count, notes, points, spread, sweep_rows
from lmm_forget.report.table import interval
from lmm_forget.report.write import write_text

_PICTURES = {
    "learning_vs_forgetting": "target learning against held-out forgetting, a point per job",
    "heldout_per_stage": "held-out mean at the base and after each stage",
}
_DETAILED = 12  # jobs whose own pictures a page still carries


def summarize(folder: Path) -> dict[str, Any]:
    """Write summary.{json,md,html} and the pictures of a sweep (or single job) into `folder`.

    Returns what summary.json holds. Jobs without results are named with their state and error. Raises
    DataError if the folder holds no job.
    """
    sweep = load_sweep(folder)
    rows = sweep_rows(sweep.results.values())
    summary = _content(sweep, rows)
    drawn = {path.stem: path for path in sweep_figures(rows, folder) if path.suffix == ".svg"} if rows else {}
    pictures = [
        inline(drawn[name].read_text(encoding="utf-8"), text) for name, text in _PICTURES.items() if drawn
    ]
    write_text(
        folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
    write_text(folder / "summary.md", markdown(summary, rows))
    write_text(folder / "summary.html", page(summary, rows, pictures, sweep.results))
    return summary


def job_summary(folder: Path) -> dict[str, Any]:
    """Write one finished job's pictures into its folder and return its entry of summary.json.

    Raises DataError if it has no usable results.json.
    """
    results = load_results(folder / "results.json")
    job_figures(results, folder)
    return _entry(sweep_rows([results])[0])


def markdown(summary: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The summary as GitHub Markdown."""
    headings = ["recipe", "trainable parameters", "learning rate", *FIGURES.values()]
    lines = [f"# {summary['name']}", ""]
    if rows:
        lines += [_md_row([*headings, "job"]), "|---|---:|---:|" + "---:|" * len(FIGURES) + "---|"]
        lines += [_md_row([*_choices(row), *_cells(row), row.job]) for row in rows]
        lines += ["", *(f"{note}  " for note in summary["notes"]), ""]
    if summary["spread"]:
        lines += ["## Over seeds and orders", "", "Mean, lowest and highest of the jobs' values.", ""]
        lines += [
            _md_row(["recipe", "learning rate", "jobs", *FIGURES.values()]),
            "|---|---:|---:|" + "---:|" * len(FIGURES),
        ]
        lines += [_md_row([e["label"], e["rates"], str(e["jobs"]), *_ranges(e)]) for e in summary["spread"]]
        lines += [""]
    if rows:
        lines += ["![learning against forgetting](learning_vs_forgetting.png)", ""]
        lines += ["![held-out mean per stage](heldout_per_stage.png)", ""]
    if summary["unfinished"]:
        lines += ["## Jobs without results", ""]
        lines += [
            f"- `{job['job']}`: {job['state']}{_because(job['error'])}" for job in summary["unfinished"]
        ]
        lines += [""]
    return "\n".join(lines)


def page(
    summary: Mapping[str, Any],
    rows: Sequence[Row],
    pictures: Sequence[str],
    results: Mapping[str, Mapping[str, Any]],
) -> str:
    """The summary as one HTML page that needs no other file; `pictures` are <svg> elements."""
    detailed = results.items() if len(results) <= _DETAILED else ()
    details = [
        (job, inline(svg(targets_per_stage(result)), f"target scores per stage of {job}"))
        for job, result in detailed
    ]
    source = resources.files("lmm_forget.report").joinpath("summary.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(
        summary=summary,
        headings=list(FIGURES.values()),
        table=[(_choices(row), [_parts(row, figure) for figure in FIGURES], row.job) for row in rows],
        spread=[(entry, _ranges(entry)) for entry in summary["spread"]],
        pictures=pictures,
        details=details,
    )


def _content(sweep: Sweep, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": sweep.name,
        "jobs": [_entry(row) for row in rows],
        "spread": spread(rows),
        "unfinished": [asdict(job) for job in sweep.unfinished],
        "notes": notes(sweep.results.values()) if rows else [],
    }


def _entry(row: Row) -> dict[str, Any]:
    """A row as plain JSON."""
    entry = asdict(row)
    entry["tasks"] = list(row.tasks)
    entry["figures"] = {figure: dict(estimate) for figure, estimate in row.figures.items()}
    entry["heldout_per_stage"] = [dict(stage) for stage in row.heldout_per_stage]
    return entry


def _choices(row: Row) -> list[str]:
    return [row.label, count(row.trainable), row.rates]


def _parts(row: Row, figure: str) -> tuple[str, str]:
    return points(row.figures[figure]["value"]), interval(row.figures[figure])


def _cells(row: Row) -> list[str]:
    return [" ".join(part for part in _parts(row, figure) if part) for figure in FIGURES]


def _ranges(entry: Mapping[str, Any]) -> list[str]:
    return [
        f"{points(entry[f]['mean'])} ({points(entry[f]['min'])} to {points(entry[f]['max'])})"
        if entry[f]
        else "n/a"
        for f in FIGURES
    ]


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _because(error: str | None) -> str:
    return f" - {' '.join(error.split())}" if error else ""


__all__ = ["job_summary", "markdown", "page", "summarize"]
