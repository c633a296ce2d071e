"""Rows of a user's JSONL file: read, and checked line by line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmm_forget.errors import DataError, brief
from lmm_forget.tasks.base import SPLITS
from lmm_forget.tasks.images import Source, name_of, source_of

KEYS = ("id", "image", "images", "image_id", "question", "answer", "answers", "choices", "split")


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


def read_rows(path: Path, images_root: Path | None) -> list[Row]:
    """All rows of a JSONL file. Raises DataError with `file:line` for the first line that cannot be used.

    Relative image paths are taken from `images_root`, or from the file's own folder.
    """
    rows = [row_from(values, where, images_root or path.parent) for where, values in _objects(path)]
    if not rows:
        raise DataError(f"{path} is empty; it needs one JSON object per line")
    return checked_ids(rows)


def checked_ids(rows: list[Row]) -> list[Row]:
    """The rows, when no id is used twice and all or none of them name a split; else DataError."""
    seen: dict[str, Row] = {}
    for row in rows:
        if row.id in seen:
            raise DataError(f"{row.where}: id {brief(row.id)!r} is used already, at {seen[row.id].where}")
        seen[row.id] = row
    marked = [row for row in rows if row.split is not None]
    if marked and len(marked) < len(rows):
        bare = next(row for row in rows if row.split is None)
        raise DataError(f"{bare.where}: no 'split', but {marked[0].where} has one; give it to all or none")
    return rows


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise DataError(f"{path} is a folder, not a JSONL file" if path.exists() else f"{path} is missing")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                raise DataError(f"{where}: not UTF-8 text") from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not valid JSON ({str(error).splitlines()[0]})") from None
            if not isinstance(values, dict):
                kind = type(values).__name__
                raise DataError(f"{where}: a {kind}, not an object {{...}}; write one object per line")
            yield where, values


def row_from(values: dict[str, Any], where: str, root: Path) -> Row:
    """A row from an object's `values` (see `KEYS`), its images below `root`. DataError with `where` for a bad one."""
    at, where = where, _called(values, where)
    images = [source_of(name, root) for name in _texts(values, where, "image", "images", empty=True)]
    split = values.get("split")
    if split is not None and split not in SPLITS:
        raise DataError(f"{where}: split {brief(split)!r} is not one of {', '.join(SPLITS)}")
    choices = values.get("choices")
    if choices is not None:
        choices = _texts(values, where, "", "choices")
        if not 2 <= len(choices) <= 26:
            raise DataError(f"{where}: {len(choices)} choices; there can be 2 to 26")
    image_id = values.get("image_id")
    return Row(
        id=text_of(_one(values, where, "id"), where, "id"),
        where=at,
        images=tuple(images),
        names=tuple(name_of(image, root) for image in images),
        image_id=None if image_id is None else text_of(image_id, where, "image_id"),
        question=text_of(_one(values, where, "question"), where, "question"),
        answers=_texts(values, where, "answer", "answers"),
        choices=choices,
        split=split,
        meta={key: value for key, value in values.items() if key not in KEYS},
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
    values: Mapping[str, Any], where: str, one: str, many: str, *, empty: bool = False
) -> tuple[str, ...]:
    """The texts under `one` (a single one) or `many` (a list)."""
    if one in values and many in values:
        raise DataError(f"{where}: both {one!r} and {many!r}; give one of them")
    if one in values:
        return (text_of(values[one], where, one),)
    if many not in values:
        raise DataError(f"{where}: no {one!r} or {many!r}; the line has {_listed(values)}")
    found = values[many]
    if not isinstance(found, list) or not (found or empty):
        raise DataError(f"{where}: {many!r} is {json.dumps(found)[:40]}, not a list of texts")
    return tuple(text_of(value, where, many) for value in found)


def text_of(value: Any, where: str, key: str) -> str:
    """A value as a text that is not blank; numbers are written out. DataError with `where` and `key`."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value != value:
        raise DataError(f"{where}: {key!r} is {json.dumps(value)[:40]}, not a text")
    text = str(value)
    if not text.strip():
        raise DataError(f"{where}: {key!r} is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{where}: {key!r} holds half of a surrogate pair, which no text file can store")
    return text


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(repr(key) for key in keys) or "nothing"
