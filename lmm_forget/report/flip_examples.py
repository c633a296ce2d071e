"""Held-out questions that turned wrong: how many after each stage, and examples with their images."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from lmm_forget.errors import DataError, LmmForgetError
from lmm_forget.report.html_templates import read_template_file, render_template
from lmm_forget.report.job_rows import TINY_PREFIX
from lmm_forget.tasks.task_loading import build_task

PAGE_TITLE = "Held-out questions that turned wrong"
EXAMPLE_COLUMNS = ("after training", "benchmark", "question", "right answer", "before", "now", "format now")
MAX_IMAGE_PIXELS = 192
"""Longer side, in pixels, of an example's image."""


@dataclass(frozen=True)
class FlipExample:
    """One question that turned wrong: its `cells` under `EXAMPLE_COLUMNS`, and its first image as base64 PNG.

    `image` is None where the sample's data is not here any more.
    """

    cells: tuple[str, ...]
    image: str | None


def count_flips(results_by_job: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per job and stage: how many suite questions turned wrong, and in which formats they are answered now."""
    rows = []
    for job, results in results_by_job.items():
        for stage in results["stages"]:
            entries = [stage["probes"]["flips"][task] for task in results["config"]["suite"]["tasks"]]
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


def select_flip_examples(job_dir: Path, results: Mapping[str, Any], max_examples: int) -> list[FlipExample]:
    """At most `max_examples` rows of a job's flips.parquet on the suite, spread over its stages and answer formats.

    Rows whose answer format changed come first. Raises DataError if the file cannot be read.
    """
    suite = set(results["config"]["suite"]["tasks"])
    trained_tasks = {stage["index"]: stage["task"] for stage in results["stages"]}
    try:
        table = pq.read_table(job_dir / "flips.parquet")
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        line = " ".join(str(error).split())[:120]
        raise DataError(f"{job_dir / 'flips.parquet'}: cannot be read ({line}); run the job again") from None
    rows = [row for row in table.to_pylist() if row["task"] in suite]
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["answer_format"] == r["format_before"], r["sample_id"])):
        groups.setdefault((row["stage"], row["answer_format"]), []).append(row)
    selected_rows: list[dict[str, Any]] = []
    while groups and len(selected_rows) < max_examples:
        for key in sorted(groups):
            selected_rows.append(groups[key].pop(0))
            if not groups[key]:
                del groups[key]
    return [
        FlipExample(_format_example_cells(row, trained_tasks[row["stage"]]), _encode_sample_image(job_dir, row))
        for row in selected_rows[:max_examples]
    ]


def render_flip_page(examples_by_job: Mapping[str, Sequence[FlipExample]]) -> str:
    """The examples as one HTML page, a table per job."""
    return render_template(
        "flips.html.j2",
        title=PAGE_TITLE,
        style=read_template_file("summary.css"),
        columns=EXAMPLE_COLUMNS,
        examples_by_job=examples_by_job,
    )


def render_flip_markdown(examples_by_job: Mapping[str, Sequence[FlipExample]]) -> str:
    """The examples as Markdown, without images."""
    lines = [f"# {PAGE_TITLE}", ""]
    for job, examples in examples_by_job.items():
        lines += [f"## {job}", "", f"| {' | '.join(EXAMPLE_COLUMNS)} |", "|" + "---|" * len(EXAMPLE_COLUMNS)]
        for example in examples:
            cells = (" ".join(cell.split()).replace("|", "\\|") for cell in example.cells)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _format_example_cells(row: Mapping[str, Any], trained_task: str) -> tuple[str, ...]:
    return (
        trained_task.removeprefix(TINY_PREFIX),
        row["task"].removeprefix(TINY_PREFIX),
        *(str(row[name]) for name in ("question", "reference", "before", "after", "answer_format")),
    )


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
                image = sample.images[0].convert("RGB")
                image.thumbnail((MAX_IMAGE_PIXELS, MAX_IMAGE_PIXELS))
                buffer = io.BytesIO()
                image.save(buffer, format="PNG")
                return base64.b64encode(buffer.getvalue()).decode()
    except (OSError, LmmForgetError, IndexError):
        return None
    return None
