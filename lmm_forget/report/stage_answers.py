"""Reads a job's answers.parquet, without the libraries that made the answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmm_forget.errors import DataError
from lmm_forget.store.record_schemas import ANSWERS_SCHEMA

ColumnValues = dict[str, list[Any]]


def get_score_kind(results: Mapping[str, Any]) -> str:
    """Which score a job's results hold under value: "strict" or "compat"."""
    return str((results["config"].get("data") or {}).get("scoring", "strict"))


def read_answer_columns(
    job_folder: Path,
    *,
    columns: Collection[str],
    stages: Collection[int] | None = None,
    score_kind: str = "strict",
) -> dict[tuple[int, str], ColumnValues]:
    """A job's answers.parquet as {(stage, task): {column: values}}; stage 0 is the base.

    Reads only `columns`, and only `stages` if given. With `score_kind="compat"` the column value holds the public
    code's score, and answers without one are left out. Raises DataError if the file is missing, damaged or of another
    version.
    """
    path = job_folder / "answers.parquet"
    try:
        schema = pq.read_schema(path)
        version = (schema.metadata or {}).get(b"lmm_forget.answers")
        if version != ANSWERS_SCHEMA:
            file_version = version.decode() if version else "none"
            raise DataError(f"{path}: answers of version {file_version}, this version reads {ANSWERS_SCHEMA.decode()}")
        source_columns = {name: "compat" if name == "value" and score_kind == "compat" else name for name in columns}
        missing = sorted({"stage", "task", *source_columns.values()} - set(schema.names))
        if missing:
            raise DataError(f"{path}: has no column {missing[0]}")
        filters = None if stages is None else pc.field("stage").isin(sorted(stages))
        table = pq.read_table(
            path, columns=list(dict.fromkeys(("stage", "task", *source_columns.values()))), filters=filters
        )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, expected the answers of a finished job") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if score_kind == "compat" and "value" in source_columns:
        table = table.filter(pc.is_valid(table["compat"]))
    columns_by_task: dict[tuple[int, str], ColumnValues] = {}
    # Rows of one stage and task are adjacent, so slices are enough and no filtering per task is needed.
    stage, task = table["stage"].to_numpy(), table["task"].to_pylist()
    edges = [0, *(i for i in range(1, len(task)) if task[i] != task[i - 1] or stage[i] != stage[i - 1])]
    for start, end in zip(edges, [*edges[1:], len(task)], strict=True):
        if end == start:
            continue
        part = table.slice(start, end - start)
        values = {name: part[source_columns[name]].to_pylist() for name in columns}
        task_columns = columns_by_task.setdefault((int(stage[start]), task[start]), {name: [] for name in columns})
        for name in columns:
            task_columns[name].extend(values[name])
    return columns_by_task
