"""Held-out questions that turned wrong during a sweep: how many, and examples with their pictures on a page."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from lmm_forget.errors import DataError, LmmForgetError
from lmm_forget.files import write_atomic
from lmm_forget.report.job_rows import TINY_PREFIX
from lmm_forget.report.templates import create_jinja_environment, read_template
from lmm_forget.tasks.task_loading import build_task

COLUMNS = ("after training", "benchmark", "question", "right answer", "before", "now", "format now")


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
    """Write flips.md and flips.html: at most `max_examples` held-out questions per job, spread over its stages."""
    jobs: list[dict[str, Any]] = []
    for job_name in job_names:
        examples = _select_flip_examples(_find_job_dir(sweep_dir, job_name), max_examples)
        jobs.append(
            {"name": job_name, "rows": [{"cells": _list_cells(row), "image": image} for row, image in examples]}
        )
    lines = ["# Held-out questions that turned wrong", ""]
    for job in jobs:
        lines += [f"## {job['name']}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        for row in job["rows"]:
            lines.append("| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in row["cells"]) + " |")
        lines.append("")
    write_atomic(sweep_dir / "flips.md", "\n".join(lines))
    page = create_jinja_environment().get_template("flips.html.j2")
    write_atomic(sweep_dir / "flips.html", page.render(style=read_template("summary.css"), columns=COLUMNS, jobs=jobs))


def _list_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["trained"].removeprefix(TINY_PREFIX),
        row["task"].removeprefix(TINY_PREFIX),
        *(row[name] for name in ("question", "reference", "before", "after", "answer_format")),
    ]


def _select_flip_examples(job_dir: Path, limit: int) -> list[tuple[dict[str, Any], str | None]]:
    """Rows of a job's flips.parquet on the suite, the last stages and unlike formats first, with pictures."""
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
