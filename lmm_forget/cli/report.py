"""`lmm-forget report FOLDER`: draw a sweep's or a job's summary again from its records."""

from __future__ import annotations

import json

from lmm_forget.cli.command import Arguments, Command


def _write_report(arguments: Arguments) -> None:
    folder = arguments.get_folder()
    from rich.console import Console

    from lmm_forget.report.sweep_report import load_sweep_report
    from lmm_forget.report.sweep_summary import write_sweep_summary
    from lmm_forget.report.terminal_table import print_sweep_table

    report = load_sweep_report(folder)
    summary = write_sweep_summary(report)
    if arguments.output_format == "json":
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    print_sweep_table(report.rows, report.settings, Console(), notes=report.notes, unfinished=report.sweep.unfinished)
    print(f"report: {folder / 'summary.html'}")


COMMAND = Command(
    name="report",
    summary="draw the tables and figures of a sweep again, from its records",
    run=_write_report,
    usage="FOLDER",
    words="FOLDER",
    description="""
Reads the records of multirun/<name> (or of one job, multirun/<name>/<job>) and writes there: summary.html (the report,
one file that needs no network), summary.md, summary.csv, summary.tex, summary.json, and every figure as SVG and PNG.
Prints the table, or summary.json with format=json. No model library is needed.""",
    formats=("table", "json"),
    examples=("lmm-forget report multirun/demo",),
)
main = COMMAND.main
