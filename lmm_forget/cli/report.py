"""`lmm-forget report FOLDER [format=json]`: draw a sweep's or a job's summary again from its records."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from lmm_forget.cli.parser import extract_format, parse_folder_argument, run_command
from lmm_forget.report.sweep_report import load_sweep_report
from lmm_forget.report.sweep_summary import write_sweep_summary
from lmm_forget.report.sweep_table import print_sweep_table

HELP = """usage: lmm-forget report FOLDER [format=table|json]

Reads the records of multirun/<name> (or of one job, multirun/<name>/<job>) and writes there: summary.html (the report,
one file that needs no network), summary.md, summary.csv, summary.tex, summary.json, and every picture as SVG and PNG.
Prints the table, or summary.json with format=json. No model library is needed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (2 for a mistake, told in one line on stderr)."""
    return run_command(_run_report, arguments, HELP)


def _run_report(words: Sequence[str]) -> None:
    output_format, rest = extract_format(words)
    folder = parse_folder_argument(rest, "report")
    report = load_sweep_report(folder)
    summary = write_sweep_summary(report)
    if output_format == "json":
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    print_sweep_table(report.rows, report.settings, Console(), notes=report.notes, unfinished=report.sweep.unfinished)
    print(f"report: {folder / 'summary.html'}")
