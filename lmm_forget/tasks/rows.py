"""Rows of a user's JSONL file: read, checked line by line, and divided by image."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.tasks.base import SPLITS

KEYS = ("id", "image", "images", "image_id", "question", "answer", "answers", "choices", "split")


@dataclass(frozen=True)
class Row:
    """One line of a file. `images` are absolute paths, `names` the same relative to the images' folder."""

    id: str
    where: str
    images: tuple[Path, ...]
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
            raise DataError(f"{row.where}: id {row.id!r} is used already, at {seen[row.id].where}")
        seen[row.id] = row
    marked = [row for row in rows if row.split is not None]
    if marked and len(marked) < len(rows):
        bare = next(row for row in rows if row.split is None)
        raise DataError(f"{bare.where}: no 'split', but {marked[0].where} has one; give it to all or none")
    return rows


@dataclass(frozen=True)
class Cluster:
    """Rows that show the same images: `number` tells clusters of one call apart, `name` is the image id."""

    number: int
    name: str


def clusters(rows: Sequence[Row]) -> list[Cluster]:
    """The cluster of every row: rows that share an image, directly or through other rows, share the cluster.

    A row's own `image_id` joins rows too. A cluster is named by the first, in alphabetical order, of its
    given ids or else of its image names; a row without images is a cluster of its own, named by its id.
    """
    parent: list[int] = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}  # the first row that shows an image file, or has an image id
    for i, row in enumerate(rows):
        given = [] if row.image_id is None else [f"id {row.image_id}"]
        for key in [*given, *(f"file {image}" for image in row.images)]:
            low, high = sorted((root(first.setdefault(key, i)), root(i)))
            parent[high] = low
    names: dict[int, tuple[int, str]] = {}
    for i, row in enumerate(rows):
        mine = [(1, name) for name in row.names] + ([] if row.image_id is None else [(0, row.image_id)])
        names[root(i)] = min([*mine, names.get(root(i), (2, row.id))])
    return [Cluster(root(i), names[root(i)][1]) for i in range(len(rows))]


def divide(
    rows: Sequence[Row], images: Sequence[Cluster], fractions: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Positions of the rows of every split, so that no image is in two splits.

    A row with a `split` keeps it; otherwise its image goes to the split that the hash of its name falls into
    (`fractions` per split, the rest to train), whatever else the file holds. Raises DataError if rows with
    given splits put an image into two of them.
    """
    found: dict[str, list[int]] = {split: [] for split in SPLITS}
    home: dict[int, tuple[str, Row]] = {}
    for position, (row, image) in enumerate(zip(rows, images, strict=True)):
        split = row.split or by_hash(image.name, fractions, seed)
        there, first = home.setdefault(image.number, (split, row))
        if there != split:
            raise DataError(
                f"{row.where}: image {image.name} is in split {split} here and in {there} at {first.where}; "
                "an image may be in one split only"
            )
        found[split].append(position)
    return found


def by_hash(image: str, fractions: Mapping[str, float], seed: int) -> str:
    """The split that an image goes to: test or validation by their `fractions`, else train."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{image}".encode()).digest()[:8], "big") / 2**64
    for split in ("test", "validation"):
        number -= fractions.get(split, 0.0)
        if number < 0:
            return split
    return "train"


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
    paths = [root / name for name in _texts(values, where, "image", "images", empty=True)]
    split = values.get("split")
    if split is not None and split not in SPLITS:
        raise DataError(f"{where}: split {split!r} is not one of {', '.join(SPLITS)}")
    choices = values.get("choices")
    if choices is not None:
        choices = _texts(values, where, "", "choices")
        if not 2 <= len(choices) <= 26:
            raise DataError(f"{where}: {len(choices)} choices; there can be 2 to 26")
    image_id = values.get("image_id")
    return Row(
        id=text_of(_one(values, where, "id"), where, "id"),
        where=at,
        images=tuple(Path(os.path.abspath(p)) for p in paths),
        names=tuple(Path(os.path.relpath(p, root)).as_posix() for p in paths),
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
