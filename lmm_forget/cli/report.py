"""`lmm-forget report FOLDER [format=json]`: draw a sweep's or a job's summary again from its records."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from lmm_forget.cli.parser import one_folder, run_command, take_format
from lmm_forget.report.load import load_sweep
from lmm_forget.report.rows import sweep_rows
from lmm_forget.report.suites import shared_suite
from lmm_forget.report.summary import summarize
from lmm_forget.report.table import render

HELP = """usage: lmm-forget report FOLDER [format=table|json]

Reads the records of multirun/<name> (or of one job, multirun/<name>/<job>) and writes there: summary.html (the report,
one file that needs no network), summary.md, summary.csv, summary.tex, summary.json, and every picture as SVG and PNG.
Prints the table, or summary.json with format=json. No model library is needed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (2 for a mistake, told in one line on stderr)."""
    return run_command(_report, arguments, HELP)


def _report(words: Sequence[str]) -> None:
    form, rest = take_format(words)
    folder = one_folder(rest, "report")
    summary = summarize(folder)
    if form == "json":
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    sweep = shared_suite(load_sweep(folder))
    rows = sweep_rows(sweep.results.values())
    render(rows, Console(), notes=summary["notes"], unfinished=sweep.unfinished)
    print(f"report: {folder / 'summary.html'}")
