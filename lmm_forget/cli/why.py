"""`lmm-forget why FOLDER`: how output shift and forgetting go together, and which questions turned wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmm_forget.cli.command import Arguments, Command, Option
from lmm_forget.errors import ConfigError, DataError
from lmm_forget.files import write_atomic


def _explain_forgetting(arguments: Arguments) -> None:
    folder, max_examples = arguments.get_folder(), arguments.get("examples") or "12"
    if not max_examples.isdecimal():
        raise ConfigError(f"examples={max_examples} cannot be used; it must be a whole number")
    from lmm_forget.metrics.forgetting_statements import judge_forgetting_statements
    from lmm_forget.metrics.shift_correlation import correlate_shift_with_forgetting
    from lmm_forget.report.flip_report import count_flips, write_flip_examples
    from lmm_forget.report.job_results import load_sweep, require_readable_results
    from lmm_forget.report.shift_report import render_shift_report

    sweep = load_sweep(folder)
    require_readable_results(sweep)
    jobs = {name: result for name, result in sweep.results.items() if "probes" in result}
    left_out = [f"{job.job} ({job.state})" for job in sweep.unfinished]
    left_out += [f"{name} (without probes)" for name in sweep.results if name not in jobs]
    for name, result in jobs.items():
        unprobed_tasks = [stage["task"] for stage in result["stages"] if "probes" not in stage]
        if unprobed_tasks:
            raise DataError(f"{folder}: {name} has no probes of the stage that trained {unprobed_tasks[0]}")
    if not jobs:
        raise DataError(f"{folder}: no finished job has probes; run them with probe=output_shift or probe=both")
    correlations = correlate_shift_with_forgetting(list(jobs.values()))
    statement_results = judge_forgetting_statements(correlations)
    report = {**correlations, "statements": statement_results, "left_out": left_out}
    text = json.dumps(report, indent=1, sort_keys=True, allow_nan=False) + "\n"
    flips = count_flips(folder, list(jobs))
    write_flip_examples(folder, list(jobs), int(max_examples))  # first: what it reads may be damaged
    write_atomic(folder / "connection.json", text)
    write_atomic(folder / "why.md", render_shift_report(sweep.name, correlations, statement_results, flips, left_out))
    draw_figures(jobs, correlations, folder)
    if arguments.output_format == "json":
        print(text, end="")
    else:
        _print_findings(correlations, statement_results, flips)
    if left_out:
        print(f"lmm-forget: note: left out: {', '.join(left_out)}", file=sys.stderr)


def draw_figures(
    results_by_job: Mapping[str, Mapping[str, Any]], correlations: Mapping[str, Any], output_dir: Path
) -> list[Path]:
    """Write the pictures, each .png and .svg; returns their paths."""
    from lmm_forget.report.experiment_settings import group_rows_by_setting
    from lmm_forget.report.job_rows import build_job_rows
    from lmm_forget.report.plots import save_figure
    from lmm_forget.report.probe_plots import plot_probe_readings
    from lmm_forget.report.shift_report import plot_shift_scatter

    figures = plot_probe_readings(results_by_job, group_rows_by_setting(build_job_rows(results_by_job.values())))
    figures.pop("probe_vs_forgetting", None)  # the one below shows milestones as well
    points = plot_shift_scatter(correlations)
    if points is not None:
        figures["connection"] = points
    return [path for name, figure in figures.items() for path in save_figure(figure, output_dir / name)]


def _print_findings(
    correlations: Mapping[str, Any],
    statement_results: Sequence[Mapping[str, Any]],
    flips: Sequence[Mapping[str, Any]],
) -> None:
    """Print the short form; readable at 80 columns."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lmm_forget.metrics.forgetting_statements import LAYER_PARTS, format_correlation
    from lmm_forget.report.probe_plots import format_prompts_label
    from lmm_forget.report.shift_report import (
        REPLY_FORMATS,
        format_flip_rows,
        format_layer_rows,
        format_part_name,
        format_verdicts,
    )

    console = Console(highlight=False)

    def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        rich_table = Table(title=title, title_justify="left")
        for name in columns:
            rich_table.add_column(name, justify="left" if name in ("figure", "job", "after") else "right")
        for row in rows:
            rich_table.add_row(*map(escape, row))
        if rows:
            console.print(rich_table)

    for shift in correlations["shifts"]:
        rows = []
        for name, against in shift["figures"].items():
            if "heldout" in against:
                entry, recovery = against["heldout"], shift["recovery"].get(name)
                recovered_text = f"{recovery['shift_went_back']} of {recovery['recovered']}" if recovery else ""
                rows.append(
                    (
                        name,
                        format_correlation(entry["pearson"]),
                        format_correlation(entry["spearman"]),
                        str(entry["n"]),
                        recovered_text,
                    )
                )
        title = f"shift on {format_prompts_label(shift['prompts'], shift['mode'])}, and held-out change"
        print_table(title, ("figure", "Pearson", "Spearman", "models", "went back"), rows)
    console.print("went back: of the stages after which the held-out mean had risen, those with a smaller shift.")
    shares = "which blocks write the change in logits (share, final norm folded in)"
    print_table(shares, ("job", "after", *map(format_part_name, LAYER_PARTS)), format_layer_rows(correlations))
    wrong = "held-out questions that turned wrong, and the formats of the new answers"
    print_table(wrong, ("job", "after", "wrong", *REPLY_FORMATS), format_flip_rows(flips))
    console.print(
        escape("\n".join(format_verdicts(correlations, statement_results)).replace("**", "").removeprefix("## "))
    )


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
