"""`lmm-forget why FOLDER`: how output shift and forgetting go together, and which questions turned wrong."""

from __future__ import annotations

import sys

from lmm_forget.cli.command import Arguments, Command, Option
from lmm_forget.errors import ConfigError


def _explain_forgetting(arguments: Arguments) -> None:
    folder, max_examples = arguments.get_folder(), arguments.get("examples") or "12"
    if not max_examples.isdecimal():
        raise ConfigError(f"examples={max_examples} cannot be used; it must be a whole number")
    from rich.console import Console

    from lmm_forget.report.shift_summary import write_shift_summary
    from lmm_forget.report.shift_table import print_shift_summary

    summary = write_shift_summary(folder, int(max_examples))
    if arguments.output_format == "json":
        print(summary.to_json(), end="")
    else:
        print_shift_summary(summary, Console(highlight=False))
    if summary.skipped_jobs:
        print(f"lmm-forget: note: left out: {', '.join(summary.skipped_jobs)}", file=sys.stderr)


COMMAND = Command(
    name="why",
    summary="show how output shift and forgetting go together, and which questions turned wrong",
    run=_explain_forgetting,
    usage="FOLDER",
    words="FOLDER",
    description="""
Reads multirun/<name> (or one job of it) whose jobs ran with a probe, e.g. probe=both, and writes there
  why.md             which of three statements about forgetting hold here, and the tables they rest on
  connection.json    correlations of the shift with held-out forgetting (intervals over jobs), and their points
  connection, probe_shift, probe_layers   as .svg and .png: shift against forgetting, its course, its layers
  flips.html         held-out questions that turned wrong, with pictures and the new answers; also as .md
and prints a short form (format=json: all of connection.json).""",
    options=(Option("examples", "12", "questions per job in flips.html"),),
    formats=("table", "json"),
    examples=("lmm-forget why multirun/why",),
)
main = COMMAND.main
