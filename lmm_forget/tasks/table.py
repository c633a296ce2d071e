"""A folder of images with a CSV: the simplest way to bring a data set."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.rows import KEYS, Row, checked_ids, row_from

SEPARATOR = "|"
"""Between several answers, images or choices in one cell."""


class TableTask(JsonlTask):
    """Questions from a CSV or TSV whose columns are {image | images, question, answer | answers} and more.

    `fields` maps these names to the columns that hold them (`{question: prompt}`); a column that is not there is
    not mapped. Cells of `images`, `answers` and `choices` list their values with `|` between them. Without an `id`
    column a row is called by its line. Everything else is as in `JsonlTask`: images below `images_root` or the
    file's folder, splits by image, other columns in `Sample.meta`.
    """

    def __init__(self, *, fields: Mapping[str, str] | None = None, **given: Any) -> None:
        super().__init__(**given)
        self.fields = dict(fields or {})

    def read_file(self, path: Path, root: Path | None) -> list[Row]:
        """See `JsonlTask.read_file`."""
        rows = []
        for line, cells in _lines(path):
            where = f"{path}:{line}"
            rows.append(row_from(self._values(cells, where, line), where, root or path.parent))
        if not rows:
            raise DataError(f"{path} has no rows below its header")
        return checked_ids(rows)

    def _values(self, cells: dict[str, str], where: str, line: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        taken = set()
        for key in KEYS:
            column = self.fields.get(key, key)
            if column not in cells:
                if key in self.fields:
                    raise DataError(f"{where}: no column {column!r} for {key}; it has {', '.join(cells)}")
                continue
            taken.add(column)
            cell = cells[column].strip()
            if cell:
                values[key] = (
                    [one.strip() for one in cell.split(SEPARATOR)]
                    if key in ("images", "answers", "choices")
                    else cell
                )
        values.setdefault("id", str(line))
        return {
            **{key: value for key, value in cells.items() if key not in taken and key not in KEYS},
            **values,
        }


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and cells of a file's rows."""
    if not path.is_file():
        raise DataError(f"{path} is a folder; give the CSV in it" if path.exists() else f"{path} is missing")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 text") from None
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a picture in a data URL is a long cell
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
    found: list[tuple[int, dict[str, str]]] = []
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cells):
                continue
            if not header:
                header = [name.strip() for name in cells]
                if len(set(header)) < len(header) or "" in header:
                    raise DataError(
                        f"{path}: the header {json.dumps(header)[:100]} has an empty or a double name"
                    )
                continue
            if len(cells) != len(header):
                raise DataError(f"{path}:{reader.line_num}: {len(cells)} cells under {len(header)} columns")
            found.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({error})") from None
    return found
