"""Everything that people look at, written in one go: the page, its pictures, and the summary in four other formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lmm_forget.files import write_atomic
from lmm_forget.report.differences import Difference, differences
from lmm_forget.report.figures import heldout_per_stage, learning_vs_forgetting, save, svg
from lmm_forget.report.formats import latex, markdown, table_csv
from lmm_forget.report.load import SCHEMA, Sweep, load_sweep, refuse_unreadable
from lmm_forget.report.matrices import held_out_changes, picture, scores
from lmm_forget.report.page import page
from lmm_forget.report.probes import probe_figures
from lmm_forget.report.rows import Row, notes, sweep_rows
from lmm_forget.report.samples import browser
from lmm_forget.report.settings import Setting, settings_of, spread
from lmm_forget.report.suites import shared_suite
from lmm_forget.report.verdict import answer, question


def summarize(folder: Path) -> dict[str, Any]:
    """Write summary.{html,json,md,csv,tex} and every picture of a sweep (or single job) into `folder`.

    Returns what summary.json holds. Jobs without results are named with their state and error, and are in no mean.
    Raises DataError if the folder holds no job.
    """
    sweep = load_sweep(folder)
    refuse_unreadable(sweep)
    sweep = shared_suite(sweep)
    rows = sweep_rows(sweep.results.values())
    settings = settings_of(rows, sweep.unfinished)
    compared = differences(sweep, settings)
    summary = _content(sweep, rows, settings, compared)
    drawn = _figures(sweep, rows, settings)
    figures = {name: svg(figure) for name, figure in drawn.items()}
    for name, figure in drawn.items():
        save(figure, folder / name, figures[name])
    write_atomic(
        folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
    write_atomic(folder / "summary.md", markdown(summary, rows, settings, sweep.unfinished, list(drawn)))
    write_atomic(folder / "summary.csv", table_csv(rows, sweep.unfinished))
    if settings:
        write_atomic(folder / "summary.tex", latex(settings, summary["notes"]))
    samples = browser(sweep, settings)
    write_atomic(
        folder / "summary.html",
        page(
            summary,
            sweep,
            rows,
            settings,
            figures=figures,
            compared=compared,
            samples=samples,
        ),
    )
    return summary


def _figures(sweep: Sweep, rows: Sequence[Row], settings: Sequence[Setting]) -> dict[str, Figure]:
    """Every picture of the sweep, by the name of its files."""
    if not rows:
        return {}
    found = {
        "learning_vs_forgetting": learning_vs_forgetting(rows),
        "heldout_per_stage": heldout_per_stage(rows),
    }
    changes = [m for setting in settings if (m := held_out_changes(setting, sweep.results))]
    if changes:
        found["stage_by_benchmark"] = picture(
            changes, "Change of each held-out benchmark since the base (points)", change=True
        )
    found["stage_by_task"] = picture(
        [scores(setting, sweep.results) for setting in settings],
        "Score of every task after each stage (points; bold: just taught)",
        change=False,
    )
    return found | probe_figures(sweep.results, settings)


def _content(
    sweep: Sweep, rows: Sequence[Row], settings: Sequence[Setting], compared: Sequence[Difference]
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": sweep.name,
        "question": question(settings),
        "answer": answer(settings, compared),
        "jobs": [_entry(row) for row in rows],
        "spread": spread(rows),
        "differences": [asdict(each) for each in compared],
        "unfinished": [{"job": job.job, "state": job.state, "error": job.error} for job in sweep.unfinished],
        "notes": [*(notes(sweep.results.values()) if rows else []), *sweep.notes],
    }


def _entry(row: Row) -> dict[str, Any]:
    """A row as plain JSON."""
    entry: dict[str, Any] = asdict(row)
    del entry["setting"], entry["content"], entry["named_model"]
    entry["tasks"], entry["extra"] = list(row.tasks), list(row.extra)
    entry["figures"] = {figure: dict(estimate) for figure, estimate in row.figures.items()}
    entry["heldout_per_stage"] = [dict(stage) for stage in row.heldout_per_stage]
    return entry
