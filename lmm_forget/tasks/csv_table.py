"""A folder of images with a CSV: the simplest way to bring a data set."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.tasks.file_rows import ROW_KEYS, FileRows, build_file_row
from lmm_forget.tasks.jsonl import JsonlTask

CELL_SEPARATOR = "|"
"""Between several answers, images or choices in one cell."""


class CsvTask(JsonlTask):
    """Questions from a CSV or TSV whose columns are {image | images, question, answer | answers} and more.

    `fields` maps these names (`rows.KEYS`) to the columns that hold them (`{question: prompt}`); a column that is not
    there is not mapped. Cells of `images`, `answers` and `choices` list their values with `|` between them. Without an
    `id` column a row is called by its line. Everything else is as in `JsonlTask`: images below `images_root` or the
    file's folder, splits by image, other columns in `Sample.meta`.
    """

    def __init__(self, *, fields: Mapping[str, str] | None = None, **task_options: Any) -> None:
        super().__init__(**task_options)
        self.fields = dict(fields or {})
        unknown_keys = [key for key in self.fields if key not in ROW_KEYS]
        if unknown_keys:
            raise ConfigError(
                f"task {self.name}: fields has {unknown_keys[0]!r}; it maps {', '.join(ROW_KEYS)} to columns"
            )

    def read_file(self, path: Path, root: Path | None) -> FileRows:
        """See `JsonlTask.read_file`."""
        file_rows, lines = FileRows(), 0
        for line_number, cells in _iterate_csv_rows(path):
            lines += 1
            location = f"{path}:{line_number}"
            if isinstance(cells, str):
                file_rows.reject_row(location, f"{location}: {cells}")
                continue
            missing_key = next((key for key, column in self.fields.items() if column not in cells), None)
            if missing_key is not None:
                raise DataError(
                    f"{location}: no column {self.fields[missing_key]!r} for {missing_key}; it has {', '.join(cells)}"
                )
            values: dict[str, Any] = {}
            try:
                values = self._parse_cells(cells, line_number)
                file_rows.add_row(build_file_row(values, location, root or path.parent))
            except DataError as error:
                file_rows.reject_row(location, str(error), values.get("split"), values.get("id"))
        if not lines:
            raise DataError(f"{path} has no rows below its header")
        return file_rows.reject_rows_without_split()

    def _parse_cells(self, cells: dict[str, str], line_number: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        used_columns = set()
        for key in ROW_KEYS:
            column = self.fields.get(key, key)
            if column not in cells:
                continue
            used_columns.add(column)
            cell = cells[column].strip()
            if cell:
                values[key] = (
                    [one.strip() for one in cell.split(CELL_SEPARATOR)]
                    if key in ("images", "answers", "choices")
                    else cell
                )
        values.setdefault("id", str(line_number))
        return {
            **{key: value for key, value in cells.items() if key not in used_columns and key not in ROW_KEYS},
            **values,
        }


def _iterate_csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Line numbers and cells of a file's rows, or why a row has none. DataError for a file without a usable header."""
    if not path.is_file():
        raise DataError(f"{path} is a folder; give the CSV in it" if path.exists() else f"{path} is missing")
    # Bytes that are not UTF-8 come out as halves of surrogate pairs, which UTF-8 itself cannot hold.
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a picture in a data URL is a long cell
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
    header: list[str] = []
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if not header:
                raise DataError(f"{path}:{reader.line_num}: not CSV ({error})") from None
            yield reader.line_num, f"not CSV ({error})"
            continue
        if not any(cells):
            continue
        if header:
            yield reader.line_num, _build_cells(header, cells)
            continue
        header = [name.strip() for name in cells]
        if not _is_utf8(header):
            raise DataError(f"{path}:{reader.line_num}: not UTF-8 text")
        if len(set(header)) < len(header) or "" in header:
            raise DataError(f"{path}: the header {json.dumps(header)[:100]} has an empty or a double name")


def _is_utf8(cells: Sequence[str]) -> bool:
    """Whether no byte of the cells had to be escaped when they were decoded."""
    return not any("\udc80" <= character <= "\udcff" for cell in cells for character in cell)


def _build_cells(header: list[str], cells: list[str]) -> dict[str, str] | str:
    if len(cells) != len(header):
        return f"{len(cells)} cells under {len(header)} columns"
    if not _is_utf8(cells):
        return "not UTF-8 text"
    return dict(zip(header, cells, strict=True))
