"""`lmm-forget why FOLDER`: how output shift and forgetting go together, and which questions turned wrong."""

from __future__ import annotations

import html
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmm_forget.cli.parser import one_folder, run_command, take_format, take_options
from lmm_forget.errors import ConfigError, DataError, LmmForgetError
from lmm_forget.files import write_atomic

HELP = """usage: lmm-forget why FOLDER [format=table|json] [examples=12]

Reads multirun/<name> (or one job of it) whose jobs ran with a probe, e.g. probe=both, and writes there
  why.md             which of three statements about forgetting hold here, and the tables they rest on
  connection.json    correlations of the shift with held-out forgetting (intervals over jobs), and their points
  connection, probe_shift, probe_layers   as .svg and .png: shift against forgetting, its course, its layers
  turned_wrong.html  held-out questions that turned wrong, with pictures and what is said instead; also as .md
and prints a short form (format=json: all of connection.json).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (2 for a mistake, told in one line on stderr)."""
    return run_command(_why, arguments, HELP)


def _why(words: Sequence[str]) -> None:
    form, rest = take_format(words)
    options, rest = take_options(rest, ("examples",))
    folder, examples = one_folder(rest, "why"), options.get("examples", "12")
    if not examples.isdecimal():
        raise ConfigError(f"examples={examples} cannot be used; it must be a whole number")
    from lmm_forget.metrics.connection import connection
    from lmm_forget.metrics.statements import statements
    from lmm_forget.report.connection import document
    from lmm_forget.report.load import load_sweep, refuse_unreadable

    sweep = load_sweep(folder)
    refuse_unreadable(sweep)
    jobs = {name: result for name, result in sweep.results.items() if "probes" in result}
    missing = [f"{job.job} ({job.state})" for job in sweep.unfinished]
    missing += [f"{name} (without probes)" for name in sweep.results if name not in jobs]
    for name, result in jobs.items():
        bare = [stage["task"] for stage in result["stages"] if "probes" not in stage]
        if bare:
            raise DataError(f"{folder}: {name} has no probes of the stage that taught {bare[0]}")
    if not jobs:
        raise DataError(
            f"{folder}: no finished job has probes; run them with probe=output_shift or probe=both"
        )
    found = connection(list(jobs.values()))
    said = statements(found)
    whole = {**found, "statements": said, "left_out": missing}
    text = json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n"
    turned = turned_counts(folder, list(jobs))
    write_turned(folder, list(jobs), int(examples))  # first: what it reads may be damaged
    write_atomic(folder / "connection.json", text)
    write_atomic(folder / "why.md", document(sweep.name, found, said, turned, missing))
    draw(jobs, found, folder)
    if form == "json":
        print(text, end="")
    else:
        _show(found, said, turned)
    if missing:
        print(f"lmm-forget: note: left out: {', '.join(missing)}", file=sys.stderr)


def turned_counts(folder: Path, jobs: Sequence[str]) -> list[dict[str, Any]]:
    """Per job and stage: how many suite questions turned wrong, and in which formats they are answered now."""
    rows = []
    for job in jobs:
        path = _job_folder(folder, job)
        results = json.loads((path / "results.json").read_text(encoding="utf-8"))
        suite = results["config"]["suite"]["tasks"]
        for stage in results["stages"]:
            entries = [stage["probes"]["turned_wrong"][task] for task in suite]
            said: Counter[str] = Counter()
            for entry in entries:
                said.update(entry["said_instead"])
            rows.append(
                {
                    "job": job,
                    "stage": stage["index"],
                    "task": stage["task"],
                    "turned_wrong": sum(entry["turned_wrong"] for entry in entries),
                    "said_instead": dict(said),
                }
            )
    return rows


def write_turned(folder: Path, jobs: Sequence[str], examples: int) -> None:
    """turned_wrong.md and turned_wrong.html: at most `examples` held-out questions per job, spread over its stages."""
    from lmm_forget.report.rows import TINY

    parts, lines = [], ["# Held-out questions that turned wrong", ""]
    for job in jobs:
        chosen = _examples(_job_folder(folder, job), examples)
        lines += [
            f"## {job}",
            "",
            "| after teaching | benchmark | question | right answer | before | now | format now |",
            "|---|---|---|---|---|---|---|",
        ]
        body = []
        for row, picture in chosen:
            cells = [
                row["taught"].removeprefix(TINY),
                row["task"].removeprefix(TINY),
                row["question"],
                row["reference"],
                row["before"],
                row["after"],
                row["said"],
            ]
            lines.append(
                "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in cells) + " |"
            )
            image = f'<img src="data:image/png;base64,{picture}" alt="" width="96">' if picture else ""
            body.append(
                "<tr><td>"
                + image
                + "</td>"
                + "".join(f"<td>{html.escape(str(c))}</td>" for c in cells)
                + "</tr>"
            )
        lines.append("")
        head = "".join(
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
        parts.append(f"<h2>{html.escape(job)}</h2><table><tr>{head}</tr>{''.join(body)}</table>")
    page = (
        "<!doctype html><meta charset='utf-8'><title>turned wrong</title><style>:root{color-scheme:light dark}"
        "body{font-family:sans-serif;margin:2em}td,th{padding:.3em .6em;"
        "text-align:left;border-bottom:1px solid #ccc;white-space:pre-line}</style>"
        f"<h1>Held-out questions that turned wrong</h1>{''.join(parts)}"
    )
    write_atomic(folder / "turned_wrong.md", "\n".join(lines))
    write_atomic(folder / "turned_wrong.html", page)


def _examples(job: Path, limit: int) -> list[tuple[dict[str, Any], str | None]]:
    """Rows of a job's turned_wrong.parquet on the suite, the last stages and unlike formats first, with pictures."""
    import pyarrow.parquet as pq

    results = json.loads((job / "results.json").read_text(encoding="utf-8"))
    suite, stages = (
        set(results["config"]["suite"]["tasks"]),
        {s["index"]: s["task"] for s in results["stages"]},
    )
    try:
        table = pq.read_table(job / "turned_wrong.parquet")
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        line = " ".join(str(error).split())[:120]
        raise DataError(
            f"{job / 'turned_wrong.parquet'}: cannot be read ({line}); run the job again"
        ) from None
    rows = [row for row in table.to_pylist() if row["task"] in suite]
    by_place: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["said"] == r["kind_before"], r["sample_id"])):
        by_place.setdefault((row["stage"], row["said"]), []).append({**row, "taught": stages[row["stage"]]})
    chosen: list[dict[str, Any]] = []
    while by_place and len(chosen) < limit:
        for place in sorted(by_place):
            chosen.append(by_place[place].pop(0))
            if not by_place[place]:
                del by_place[place]
    return [(row, _picture(job, row)) for row in chosen[:limit]]


def _picture(job: Path, row: Mapping[str, Any]) -> str | None:
    """The sample's first image as base64 PNG, None where its data is not here any more."""
    import base64
    import io

    import yaml

    from lmm_forget.tasks.loading import build_task

    try:
        config = yaml.safe_load((job / "job.yaml").read_text(encoding="utf-8"))
        samples = build_task(config["tasks"][row["task"]]).samples("test")
        index = row["sample_id"].rpartition("-")[2]
        likely = [int(index)] if index.isdecimal() and int(index) < len(samples) else []
        for i in (*likely, *range(len(samples))):
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


def _job_folder(folder: Path, job: str) -> Path:
    return folder / job if (folder / job).is_dir() else folder


def draw(jobs: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the pictures, each .png and .svg; returns their paths."""
    from lmm_forget.report.connection import scatter
    from lmm_forget.report.figures import save
    from lmm_forget.report.probes import probe_figures
    from lmm_forget.report.rows import sweep_rows
    from lmm_forget.report.settings import settings_of

    pictures = probe_figures(jobs, settings_of(sweep_rows(jobs.values())))
    pictures.pop("probe_vs_forgetting", None)  # the one below shows milestones as well
    points = scatter(found)
    if points is not None:
        pictures["connection"] = points
    return [path for name, figure in pictures.items() for path in save(figure, folder / name)]


def _show(
    found: Mapping[str, Any], said: Sequence[Mapping[str, Any]], turned: Sequence[Mapping[str, Any]]
) -> None:
    """Print the short form; readable at 80 columns."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lmm_forget.metrics.statements import PARTS, told
    from lmm_forget.report.connection import KINDS, layer_rows, part_name, turned_rows, verdicts
    from lmm_forget.report.probes import where

    console = Console(highlight=False)

    def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        shown = Table(title=title, title_justify="left")
        for name in head:
            shown.add_column(name, justify="left" if name in ("figure", "job", "after") else "right")
        for row in rows:
            shown.add_row(*map(escape, row))
        if rows:
            console.print(shown)

    for shift in found["shifts"]:
        rows = []
        for name, against in shift["figures"].items():
            if "heldout" in against:
                entry, back = against["heldout"], shift["recovery"].get(name)
                went = f"{back['shift_went_back']} of {back['recovered']}" if back else ""
                rows.append((name, told(entry["pearson"]), told(entry["spearman"]), str(entry["n"]), went))
        title = f"shift on {where(shift['prompts'], shift['mode'])}, and held-out change"
        table(title, ("figure", "Pearson", "Spearman", "models", "went back"), rows)
    console.print(
        "went back: of the stages after which the held-out mean had risen, those with a smaller shift."
    )
    shares = "who writes the change in logits (share, final norm folded in)"
    table(shares, ("job", "after", *map(part_name, PARTS)), layer_rows(found))
    wrong = "held-out questions that turned wrong, and formats said instead"
    table(wrong, ("job", "after", "wrong", *KINDS), turned_rows(turned))
    console.print(escape("\n".join(verdicts(found, said)).replace("**", "").removeprefix("## ")))
