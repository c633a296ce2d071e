"""A folder of images with a CSV: the simplest way to bring a data set."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.rows import KEYS, FileRows, row_from

SEPARATOR = "|"
"""Between several answers, images or choices in one cell."""


class TableTask(JsonlTask):
    """Questions from a CSV or TSV whose columns are {image | images, question, answer | answers} and more.

    `fields` maps these names (`rows.KEYS`) to the columns that hold them (`{question: prompt}`); a column that is not
    there is not mapped. Cells of `images`, `answers` and `choices` list their values with `|` between them. Without an
    `id` column a row is called by its line. Everything else is as in `JsonlTask`: images below `images_root` or the
    file's folder, splits by image, other columns in `Sample.meta`.
    """

    def __init__(self, *, fields: Mapping[str, str] | None = None, **given: Any) -> None:
        super().__init__(**given)
        self.fields = dict(fields or {})
        odd = [key for key in self.fields if key not in KEYS]
        if odd:
            raise ConfigError(
                f"task {self.name}: fields has {odd[0]!r}; it maps {', '.join(KEYS)} to columns"
            )

    def read_file(self, path: Path, root: Path | None) -> FileRows:
        """See `JsonlTask.read_file`."""
        found, lines = FileRows(), 0
        for line, cells in _lines(path):
            lines += 1
            where = f"{path}:{line}"
            if isinstance(cells, str):
                found.refuse(where, f"{where}: {cells}")
                continue
            lacking = next((key for key, column in self.fields.items() if column not in cells), None)
            if lacking is not None:
                raise DataError(
                    f"{where}: no column {self.fields[lacking]!r} for {lacking}; it has {', '.join(cells)}"
                )
            values: dict[str, Any] = {}
            try:
                values = self._values(cells, line)
                found.add(row_from(values, where, root or path.parent))
            except DataError as error:
                found.refuse(where, str(error), values.get("split"), values.get("id"))
        if not lines:
            raise DataError(f"{path} has no rows below its header")
        return found.close()

    def _values(self, cells: dict[str, str], line: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        taken = set()
        for key in KEYS:
            column = self.fields.get(key, key)
            if column not in cells:
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


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
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
            yield reader.line_num, _row(header, cells)
            continue
        header = [name.strip() for name in cells]
        if not _utf8(header):
            raise DataError(f"{path}:{reader.line_num}: not UTF-8 text")
        if len(set(header)) < len(header) or "" in header:
            raise DataError(f"{path}: the header {json.dumps(header)[:100]} has an empty or a double name")


def _utf8(cells: Sequence[str]) -> bool:
    """Whether no byte of the cells had to be escaped when they were decoded."""
    return not any("\udc80" <= character <= "\udcff" for cell in cells for character in cell)


def _row(header: list[str], cells: list[str]) -> dict[str, str] | str:
    if len(cells) != len(header):
        return f"{len(cells)} cells under {len(header)} columns"
    if not _utf8(cells):
        return "not UTF-8 text"
    return dict(zip(header, cells, strict=True))
