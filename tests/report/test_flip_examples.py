"""Examples of questions that turned wrong: their choice, and the page and Markdown that show them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lmm_forget.errors import DataError
from lmm_forget.report.flip_examples import (
    EXAMPLE_COLUMNS,
    FlipExample,
    render_flip_markdown,
    render_flip_page,
    select_flip_examples,
)

TINY_TASK = {"_target_": "lmm_forget.tasks.tiny_task.TinyTask", "name": "tiny_ai2d"}


def write_flips(folder: Path, rows: list[tuple[int, str, str, str]]) -> None:
    """flips.parquet of tiny_ai2d: (stage, sample id, answer format before, and now)."""
    names = ("stage", "task", "sample_id", "question", "reference", "before", "after", "format_before", "answer_format")
    folder.mkdir(parents=True, exist_ok=True)
    table = [
        dict(zip(names, (stage, "tiny_ai2d", sample, "Which?", "A", "A", "7", old, new), strict=True))
        for stage, sample, old, new in rows
    ]
    pq.write_table(pa.Table.from_pylist(table), folder / "flips.parquet")
    (folder / "job.yaml").write_text(yaml.safe_dump({"tasks": {"tiny_ai2d": TINY_TASK}}))


@pytest.fixture
def results(make: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = make(tasks=("tiny_cub200", "tiny_pathvqa"))
    found["config"]["suite"]["tasks"] = ["tiny_ai2d"]
    return found


def test_examples_are_spread_over_stages_and_formats(tmp_path: Path, results: dict[str, Any]) -> None:
    first_stage = [(1, f"test-{i}", "letter", "letter") for i in range(5)]
    write_flips(tmp_path, [*first_stage, (1, "test-8", "letter", "number"), (2, "test-9", "letter", "number")])
    examples = select_flip_examples(tmp_path, results, 3)
    assert [(example.cells[0], example.cells[-1]) for example in examples] == [
        ("cub200", "letter"),
        ("cub200", "number"),
        ("pathvqa", "number"),
    ]
    assert len(select_flip_examples(tmp_path, results, 100)) == 7
    assert select_flip_examples(tmp_path, results, 0) == []


def test_a_sample_that_is_gone_has_no_image(tmp_path: Path, results: dict[str, Any]) -> None:
    write_flips(tmp_path, [(1, "nowhere", "letter", "number")])
    (tmp_path / "job.yaml").write_text("tasks: {tiny_ai2d: {_target_: lmm_forget.tasks.jsonl.JsonlTask}}\n")
    (example,) = select_flip_examples(tmp_path, results, 1)
    assert example.image is None


def test_a_damaged_file_is_named(tmp_path: Path, results: dict[str, Any]) -> None:
    (tmp_path / "flips.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="flips.parquet: cannot be read"):
        select_flip_examples(tmp_path, results, 1)


def test_page_and_markdown_escape_what_a_model_wrote() -> None:
    cells = ("cub200", "ai2d", "a|b\n<script>?", "A", "A", "7 & 8", "number")
    examples = {"a<b": [FlipExample(cells, "QUJD"), FlipExample(cells, None)], "none": []}
    page = render_flip_page(examples)
    assert "<script>" not in page and "&lt;script&gt;" in page and "7 &amp; 8" in page and "<h2>a&lt;b</h2>" in page
    assert page.count("<img ") == 1 and 'src="data:image/png;base64,QUJD"' in page
    assert all(f"<th>{column}</th>" in page for column in EXAMPLE_COLUMNS)
    lines = render_flip_markdown(examples).splitlines()
    assert "| cub200 | ai2d | a\\|b <script>? | A | A | 7 & 8 | number |" in lines
    assert lines[0] == "# Held-out questions that turned wrong" and lines.count("## none") == 1
