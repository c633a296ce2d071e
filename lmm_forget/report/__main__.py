"""`python -m lmm_forget.report FOLDER [format=json]`: draw a sweep's or a job's summary again from its records."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lmm_forget.errors import ConfigError, LmmForgetError
from lmm_forget.report.load import load_sweep
from lmm_forget.report.rows import sweep_rows
from lmm_forget.report.suites import shared_suite
from lmm_forget.report.summary import summarize
from lmm_forget.report.table import render

HELP = """usage: python -m lmm_forget.report FOLDER [format=table|json]

Reads the records of multirun/<name> (or of one job, multirun/<name>/<job>) and writes there: summary.html (the report,
one file that needs no network), summary.md, summary.csv, summary.tex, summary.json, and every picture as SVG and PNG.
Prints the table, or summary.json with format=json. No model library is needed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (2 for a mistake, told in one line on stderr)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    try:
        _report(words)
    except LmmForgetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _report(words: Sequence[str]) -> None:
    options = dict(word.split("=", 1) for word in words if word.startswith("format="))
    folders = [word for word in words if not word.startswith("format=")]
    if len(folders) != 1:
        raise ConfigError(
            f"found {len(folders)} folders, expected one: python -m lmm_forget.report multirun/<name>"
        )
    shape = options.get("format", "table")
    if shape not in ("table", "json"):
        raise ConfigError(f"format={shape} does not exist, expected format=table or format=json")
    folder = Path(folders[0])
    summary = summarize(folder)
    if shape == "json":
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    sweep = shared_suite(load_sweep(folder))
    rows = sweep_rows(sweep.results.values())
    render(rows, Console(), notes=summary["notes"], unfinished=sweep.unfinished)
    print(f"report: {folder / 'summary.html'}")


if __name__ == "__main__":
    sys.exit(main())
