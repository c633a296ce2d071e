"""`lmm-forget why FOLDER`: how output shift and forgetting go together, and which questions turned wrong."""

from __future__ import annotations

import html
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmm_forget.cli.parser import extract_format, extract_options, parse_folder_argument, run_command
from lmm_forget.errors import ConfigError, DataError, LmmForgetError
from lmm_forget.files import write_atomic

HELP = """usage: lmm-forget why FOLDER [format=table|json] [examples=12]

Reads multirun/<name> (or one job of it) whose jobs ran with a probe, e.g. probe=both, and writes there
  why.md             which of three statements about forgetting hold here, and the tables they rest on
  connection.json    correlations of the shift with held-out forgetting (intervals over jobs), and their points
  connection, probe_shift, probe_layers   as .svg and .png: shift against forgetting, its course, its layers
  flips.html  held-out questions that turned wrong, with pictures and what is said instead; also as .md
and prints a short form (format=json: all of connection.json).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (2 for a mistake, told in one line on stderr)."""
    return run_command(_run_why, arguments, HELP)


def _run_why(arguments: Sequence[str]) -> None:
    output_format, remaining_arguments = extract_format(arguments)
    options, remaining_arguments = extract_options(remaining_arguments, ("examples",))
    folder, max_examples = parse_folder_argument(remaining_arguments, "why"), options.get("examples", "12")
    if not max_examples.isdecimal():
        raise ConfigError(f"examples={max_examples} cannot be used; it must be a whole number")
    from lmm_forget.metrics.forgetting_statements import judge_forgetting_statements
    from lmm_forget.metrics.shift_correlation import correlate_shift_with_forgetting
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
            raise DataError(f"{folder}: {name} has no probes of the stage that taught {unprobed_tasks[0]}")
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
    if output_format == "json":
        print(text, end="")
    else:
        _print_findings(correlations, statement_results, flips)
    if left_out:
        print(f"lmm-forget: note: left out: {', '.join(left_out)}", file=sys.stderr)


def count_flips(sweep_dir: Path, job_names: Sequence[str]) -> list[dict[str, Any]]:
    """Per job and stage: how many suite questions turned wrong, and in which formats they are answered now."""
    rows = []
    for job in job_names:
        path = _find_job_dir(sweep_dir, job)
        results = json.loads((path / "results.json").read_text(encoding="utf-8"))
        suite = results["config"]["suite"]["tasks"]
        for stage in results["stages"]:
            entries = [stage["probes"]["flips"][task] for task in suite]
            formats: Counter[str] = Counter()
            for entry in entries:
                formats.update(entry["changed_formats"])
            rows.append(
                {
                    "job": job,
                    "stage": stage["index"],
                    "task": stage["task"],
                    "right_to_wrong": sum(entry["right_to_wrong"] for entry in entries),
                    "changed_formats": dict(formats),
                }
            )
    return rows


def write_flip_examples(sweep_dir: Path, job_names: Sequence[str], max_examples: int) -> None:
    """flips.md and flips.html: at most `examples` held-out questions per job, spread over its stages."""
    from lmm_forget.report.job_rows import TINY_PREFIX

    parts, lines = [], ["# Held-out questions that turned wrong", ""]
    for job in job_names:
        chosen = _select_flip_examples(_find_job_dir(sweep_dir, job), max_examples)
        lines += [
            f"## {job}",
            "",
            "| after teaching | benchmark | question | right answer | before | now | format now |",
            "|---|---|---|---|---|---|---|",
        ]
        body = []
        for row, picture in chosen:
            cells = [
                row["trained"].removeprefix(TINY_PREFIX),
                row["task"].removeprefix(TINY_PREFIX),
                row["question"],
                row["reference"],
                row["before"],
                row["after"],
                row["answer_format"],
            ]
            lines.append("| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in cells) + " |")
            image = f'<img src="data:image/png;base64,{picture}" alt="" width="96">' if picture else ""
            body.append(
                "<tr><td>" + image + "</td>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in cells) + "</tr>"
            )
        lines.append("")
        header = "".join(
            f"<th>{h}</th>"
            for h in (
                "",
                "after teaching",
                "benchmark",
                "question",
                "right answer",
                "before",
                "now",
                "format now",
            )
        )
        parts.append(f"<h2>{html.escape(job)}</h2><table><tr>{header}</tr>{''.join(body)}</table>")
    page = (
        "<!doctype html><meta charset='utf-8'><title>turned wrong</title><style>:root{color-scheme:light dark}"
        "body{font-family:sans-serif;margin:2em}td,th{padding:.3em .6em;"
        "text-align:left;border-bottom:1px solid #ccc;white-space:pre-line}</style>"
        f"<h1>Held-out questions that turned wrong</h1>{''.join(parts)}"
    )
    write_atomic(sweep_dir / "flips.md", "\n".join(lines))
    write_atomic(sweep_dir / "flips.html", page)


def _select_flip_examples(job_dir: Path, limit: int) -> list[tuple[dict[str, Any], str | None]]:
    """Rows of a job's flips.parquet on the suite, the last stages and unlike formats first, with pictures."""
    import pyarrow.parquet as pq

    results = json.loads((job_dir / "results.json").read_text(encoding="utf-8"))
    suite, stages = (
        set(results["config"]["suite"]["tasks"]),
        {s["index"]: s["task"] for s in results["stages"]},
    )
    try:
        table = pq.read_table(job_dir / "flips.parquet")
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        line = " ".join(str(error).split())[:120]
        raise DataError(f"{job_dir / 'flips.parquet'}: cannot be read ({line}); run the job again") from None
    rows = [row for row in table.to_pylist() if row["task"] in suite]
    rows_by_stage_and_format: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["answer_format"] == r["format_before"], r["sample_id"])):
        rows_by_stage_and_format.setdefault((row["stage"], row["answer_format"]), []).append(
            {**row, "trained": stages[row["stage"]]}
        )
    chosen: list[dict[str, Any]] = []
    while rows_by_stage_and_format and len(chosen) < limit:
        for stage_and_format in sorted(rows_by_stage_and_format):
            chosen.append(rows_by_stage_and_format[stage_and_format].pop(0))
            if not rows_by_stage_and_format[stage_and_format]:
                del rows_by_stage_and_format[stage_and_format]
    return [(row, _encode_sample_image(job_dir, row)) for row in chosen[:limit]]


def _encode_sample_image(job_dir: Path, row: Mapping[str, Any]) -> str | None:
    """The sample's first image as base64 PNG, None where its data is not here any more."""
    import base64
    import io

    import yaml

    from lmm_forget.tasks.task_loading import build_task

    try:
        config = yaml.safe_load((job_dir / "job.yaml").read_text(encoding="utf-8"))
        samples = build_task(config["tasks"][row["task"]]).load_samples("test")
        index = row["sample_id"].rpartition("-")[2]
        likely_indices = [int(index)] if index.isdecimal() and int(index) < len(samples) else []
        for i in (*likely_indices, *range(len(samples))):
            sample = samples[i]
            if sample.id == row["sample_id"]:
                buffer = io.BytesIO()
                image = sample.images[0].convert("RGB")
                image.thumbnail((192, 192))
                image.save(buffer, format="PNG")
                return base64.b64encode(buffer.getvalue()).decode()
    except (OSError, LmmForgetError, IndexError):
        return None
    return None


def _find_job_dir(sweep_dir: Path, job_name: str) -> Path:
    return sweep_dir / job_name if (sweep_dir / job_name).is_dir() else sweep_dir


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
    shares = "who writes the change in logits (share, final norm folded in)"
    print_table(shares, ("job", "after", *map(format_part_name, LAYER_PARTS)), format_layer_rows(correlations))
    wrong = "held-out questions that turned wrong, and formats said instead"
    print_table(wrong, ("job", "after", "wrong", *REPLY_FORMATS), format_flip_rows(flips))
    console.print(
        escape("\n".join(format_verdicts(correlations, statement_results)).replace("**", "").removeprefix("## "))
    )
