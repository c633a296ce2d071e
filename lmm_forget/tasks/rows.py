"""Rows of a user's JSONL file: read, and checked line by line."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmm_forget.errors import DataError, brief
from lmm_forget.tasks.base import SPLITS, digest
from lmm_forget.tasks.images import Source, content_digest, name_of, source_of
from lmm_forget.tasks.values import MARK, optional_text, question_of, text_of

KEYS = (
    "id",
    "image",
    "images",
    "image_id",
    "system",
    "question",
    "answer",
    "answers",
    "choices",
    "split",
)


@dataclass(frozen=True)
class Row:
    """One line of a file. `images` are absolute paths or URLs, `names` short names of the same (paths: relative to
    the images' folder)."""

    id: str
    where: str
    images: tuple[Source, ...]
    names: tuple[str, ...]
    image_id: str | None
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] | None
    split: str | None
    meta: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None


class FileRows:
    """The rows of a file, and of those that cannot be used the place and the reason.

    `bad` maps a place (`file:line`) to "place or id: reason", `split_of` the same place to the split that the file
    gives it, where it gives one. A row whose id is taken is bad: the first one keeps it. `close` ends the reading.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows: list[Row] = list(rows)
        self.bad: dict[str, str] = {}
        self.split_of: dict[str, str] = {}
        self._places: dict[str, str] = {}

    def add(self, row: Row) -> None:
        """Take a row, unless its id is taken."""
        first = self._places.setdefault(row.id, row.where)
        if first == row.where:
            self.rows.append(row)
        else:
            self.refuse(
                row.where, f"{row.where}: id {brief(row.id)!r} is used already, at {first}", row.split
            )

    def refuse(self, where: str, reason: str, split: Any = None, name: Any = None) -> None:
        """Note that the row at `where` cannot be used; `name` is its id as far as that can be told."""
        self.bad[where] = brief(reason, 500)
        if split in SPLITS:
            self.split_of[where] = split
        with suppress(DataError):
            self._places.setdefault(text_of(name, where), where)

    def content(self) -> str:
        """Digest of the rows, of what cannot be used, and of the pictures' bytes (which are not decoded)."""
        pictures = {image: content_digest(image) for row in self.rows for image in row.images}
        rows = [
            [
                *(
                    row.id,
                    row.names,
                    row.image_id,
                    row.question,
                    row.answers,
                    row.choices,
                    row.split,
                    row.system,
                ),
                *(dict(sorted(row.meta.items())), [pictures[image] for image in row.images]),
            ]
            for row in self.rows
        ]
        return digest(rows, [reason.rpartition("/")[2] for reason in self.bad.values()])

    def close(self) -> FileRows:
        """Look at all rows together: where one names a split, those that name none are bad."""
        marked = next((row for row in self.rows if row.split is not None), None)
        if marked is not None:
            why = f"no 'split', but {marked.where} has one; give it to all or none"
            self.refuse_rows(lambda row: why if row.split is None else None)
        return self

    def refuse_rows(self, reason: Callable[[Row], str | None]) -> None:
        """Take every row out again for which there is a `reason`."""
        for row in self.rows:
            if (why := reason(row)) is not None:
                self.refuse(row.where, f"{row.where}: {why}")
        self.rows = [row for row in self.rows if row.where not in self.bad]


def read_rows(path: Path, images_root: Path | None) -> FileRows:
    """The rows of a JSONL file, and which of its lines cannot be used. DataError if the file itself cannot be read.

    Relative image paths are taken from `images_root`, or from the file's own folder.
    """
    found, lines = FileRows(), 0
    for where, line in _lines(path):
        lines += 1
        values: Any = None
        try:
            values = _object(line, where)
            found.add(row_from(values, where, images_root or path.parent))
        except DataError as error:
            given = values or {}
            found.refuse(where, str(error), given.get("split"), given.get("id"))
    if not lines:
        raise DataError(f"{path} is empty; it needs one JSON object per line")
    return found.close()


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank, each with its place."""
    if not path.is_file():
        raise DataError(f"{path} is a folder, not a JSONL file" if path.exists() else f"{path} is missing")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(BOM_UTF8) if number == 1 else line
            if line.strip():
                yield f"{path}:{number}", line.rstrip()


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise DataError(
            f"{where}: a {type(values).__name__}, not an object {{...}}; write one object per line"
        )
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError where a key stands twice, of which Python would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def row_from(values: dict[str, Any], where: str, root: Path) -> Row:
    """A row from an object's `values` (see `KEYS`), its images below `root`. DataError with `where` for a bad one."""
    at, where = where, _called(values, where)
    images = [
        source_of(name, root) for name in _texts(values, where, "image", "images", empty=True, strip=False)
    ]
    split = values.get("split")
    if split is not None and split not in SPLITS:
        raise DataError(f"{where}: split {brief(split)!r} is not one of {', '.join(SPLITS)}")
    choices = values.get("choices")
    if choices is not None:
        choices = _texts(values, where, "", "choices")
        if not 2 <= len(choices) <= 26:
            raise DataError(f"{where}: {len(choices)} choices; there can be 2 to 26")
    image_id = values.get("image_id")
    asked = _one(values, where, "question")
    marks = asked.count(MARK) if isinstance(asked, str) else 0
    if marks not in (0, len(images)):
        raise DataError(f"{where}: {marks} {MARK} mark{'s' * (marks != 1)} and {len(images)} images")
    return Row(
        id=text_of(_one(values, where, "id"), f"{where}: 'id'"),
        where=at,
        images=tuple(images),
        names=tuple(name_of(image, root) for image in images),
        image_id=None if image_id is None else text_of(image_id, f"{where}: 'image_id'"),
        question=question_of(asked, f"{where}: 'question'"),
        answers=_texts(values, where, "answer", "answers"),
        choices=choices,
        split=split,
        meta={key: value for key, value in values.items() if key not in KEYS},
        system=optional_text(values.get("system"), f"{where}: 'system'"),
    )


def _called(values: Mapping[str, Any], where: str) -> str:
    """The place of a row as messages call it: with its id, if it has one."""
    found = values.get("id")
    usable = isinstance(found, str | int) and not isinstance(found, bool) and str(found).strip()
    return f"{where} (id {str(found)[:60]})" if usable else where


def _one(values: Mapping[str, Any], where: str, key: str) -> Any:
    if key not in values:
        raise DataError(f"{where}: no {key!r}; the line has {_listed(values)}")
    return values[key]


def _texts(
    values: Mapping[str, Any], where: str, one: str, many: str, *, empty: bool = False, strip: bool = True
) -> tuple[str, ...]:
    """The texts under `one` (a single one) or `many` (a list)."""
    if one in values and many in values:
        raise DataError(f"{where}: both {one!r} and {many!r}; give one of them")
    if one in values:
        return (text_of(values[one], f"{where}: {one!r}", strip=strip),)
    if many not in values:
        raise DataError(f"{where}: no {one!r} or {many!r}; the line has {_listed(values)}")
    found = values[many]
    if not isinstance(found, list) or not (found or empty):
        raise DataError(f"{where}: {many!r} is {json.dumps(found)[:40]}, not a list of texts")
    return tuple(text_of(value, f"{where}: {many!r}", strip=strip) for value in found)


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(repr(key) for key in keys) or "nothing"
