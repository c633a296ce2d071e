"""`lmm-forget why FOLDER`: how output shift and forgetting go together, and which questions turned wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from lmm_forget.cli.parser import extract_format, extract_options, parse_folder_argument, run_command
from lmm_forget.errors import ConfigError
from lmm_forget.report.shift_summary import write_shift_summary
from lmm_forget.report.shift_table import print_shift_summary

HELP = """usage: lmm-forget why FOLDER [format=table|json] [examples=12]

Reads multirun/<name> (or one job of it) whose jobs ran with a probe, e.g. probe=both, and writes there
  why.md             which of three statements about forgetting hold here, and the tables they rest on
  connection.json    correlations of the shift with held-out forgetting (intervals over jobs), and their points
  connection, probe_shift, probe_layers   as .svg and .png: shift against forgetting, its course, its layers
  flips.html  held-out questions that turned wrong, with images and the answers before and now; also as .md
and prints a short form (format=json: all of connection.json).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for a user's mistake, which is reported in one line on stderr)."""
    return run_command(_run_why, arguments, HELP)


def _run_why(arguments: Sequence[str]) -> None:
    output_format, remaining_arguments = extract_format(arguments)
    options, remaining_arguments = extract_options(remaining_arguments, ("examples",))
    folder, max_examples = parse_folder_argument(remaining_arguments, "why"), options.get("examples", "12")
    if not max_examples.isdecimal():
        raise ConfigError(f"examples={max_examples} cannot be used; it must be a whole number")
    summary = write_shift_summary(folder, int(max_examples))
    if output_format == "json":
        print(summary.to_json(), end="")
    else:
        print_shift_summary(summary, Console(highlight=False))
    if summary.skipped_jobs:
        print(f"lmm-forget: note: left out: {', '.join(summary.skipped_jobs)}", file=sys.stderr)
