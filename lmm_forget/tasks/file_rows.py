"""Read a user's JSONL file and validate it line by line."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmm_forget.errors import DataError, shorten_value
from lmm_forget.tasks.images import ImageSource, get_image_name, hash_image_file, parse_image_source
from lmm_forget.tasks.task import SPLITS, hash_json_parts
from lmm_forget.tasks.text_values import IMAGE_MARK, convert_to_optional_text, convert_to_text, parse_question

ROW_KEYS = (
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
class FileRow:
    """One question of a file, at `location` (`file:line`).

    `images` are absolute paths or URLs, `image_names` their short names (of a path: relative to the images' folder);
    see `Sample` for the other fields.
    """

    id: str
    location: str
    images: tuple[ImageSource, ...]
    image_names: tuple[str, ...]
    image_id: str | None
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] | None
    split: str | None
    meta: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None


class FileRows:
    """The rows of a file, and which rows cannot be used and why.

    `bad_rows` maps the location of a row (`file:line`) to "location or id: reason", `bad_row_splits` maps it to the
    row's split if the file gives one. Of several rows with the same id only the first can be used.
    """

    def __init__(self, rows: Iterable[FileRow] = ()) -> None:
        self.rows: list[FileRow] = list(rows)
        self.bad_rows: dict[str, str] = {}
        self.bad_row_splits: dict[str, str] = {}
        self._id_locations: dict[str, str] = {}

    def add_row(self, row: FileRow) -> None:
        """Add a row; it counts as bad if an earlier row has the same id."""
        first_location = self._id_locations.setdefault(row.id, row.location)
        if first_location == row.location:
            self.rows.append(row)
        else:
            self.reject_row(
                row.location,
                f"{row.location}: id {shorten_value(row.id)!r} is used already, at {first_location}",
                row.split,
            )

    def reject_row(self, location: str, reason: str, split: Any = None, row_id: Any = None) -> None:
        """Record that the row at `location` cannot be used; `row_id` is its id as far as it could be read."""
        self.bad_rows[location] = shorten_value(reason, 500)
        if split in SPLITS:
            self.bad_row_splits[location] = split
        with suppress(DataError):
            self._id_locations.setdefault(convert_to_text(row_id, location), location)

    def hash_content(self) -> str:
        """Digest of the rows, of the reasons of bad rows, and of the bytes of the image files (not decoded)."""
        image_hashes = {image: hash_image_file(image) for row in self.rows for image in row.images}
        rows = [
            [
                *(
                    row.id,
                    row.image_names,
                    row.image_id,
                    row.question,
                    row.answers,
                    row.choices,
                    row.split,
                    row.system,
                ),
                *(dict(sorted(row.meta.items())), [image_hashes[image] for image in row.images]),
            ]
            for row in self.rows
        ]
        return hash_json_parts(rows, [reason.rpartition("/")[2] for reason in self.bad_rows.values()])

    def reject_rows_without_split(self) -> FileRows:
        """Reject rows without a split if any row has one."""
        first_with_split = next((row for row in self.rows if row.split is not None), None)
        if first_with_split is not None:
            message = f"no 'split', but {first_with_split.location} has one; give it to all or none"
            self.reject_rows(lambda row: message if row.split is None else None)
        return self

    def reject_rows(self, find_reason: Callable[[FileRow], str | None]) -> None:
        """Reject every row for which `find_reason` returns a reason."""
        for row in self.rows:
            if (message := find_reason(row)) is not None:
                self.reject_row(row.location, f"{row.location}: {message}")
        self.rows = [row for row in self.rows if row.location not in self.bad_rows]


def read_jsonl_rows(path: Path, images_root: Path | None) -> FileRows:
    """Read a JSONL file. Lines that cannot be used are bad rows; raises DataError if the file itself cannot be read.

    Relative image paths start from `images_root`, or else from the file's folder.
    """
    file_rows, lines = FileRows(), 0
    for location, line in _iterate_lines(path):
        lines += 1
        values: Any = None
        try:
            values = _parse_json_object(line, location)
            file_rows.add_row(build_file_row(values, location, images_root or path.parent))
        except DataError as error:
            fields = values or {}
            file_rows.reject_row(location, str(error), fields.get("split"), fields.get("id"))
    if not lines:
        raise DataError(f"{path} is empty; it needs one JSON object per line")
    return file_rows.reject_rows_without_split()


def _iterate_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(location `file:line`, line) for every line of a file that is not blank."""
    if not path.is_file():
        raise DataError(f"{path} is a folder, not a JSONL file" if path.exists() else f"{path} is missing")
    with open(path, "rb") as file:
        for line_number, line in enumerate(file, start=1):
            line = line.removeprefix(BOM_UTF8) if line_number == 1 else line
            if line.strip():
                yield f"{path}:{line_number}", line.rstrip()


def _parse_json_object(line: bytes, location: str) -> dict[str, Any]:
    try:
        values = json.loads(line.decode("utf-8"), object_pairs_hook=_build_unique_key_dict)
    except UnicodeDecodeError:
        raise DataError(f"{location}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location}: not valid JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise DataError(f"{location}: a {type(values).__name__}, not an object {{...}}; write one object per line")
    return values


def _build_unique_key_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build the dict of a JSON object. Raises ValueError for a repeated key, of which Python would keep the last."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return mapping


def build_file_row(values: dict[str, Any], location: str, images_root: Path) -> FileRow:
    """Build a row from a JSON object (keys: `ROW_KEYS`). Raises DataError beginning with `location`."""
    row_location, location = location, _describe_row_location(values, location)
    images = [
        parse_image_source(name, images_root)
        for name in _read_texts(values, location, "image", "images", allow_empty=True, strip=False)
    ]
    split = values.get("split")
    if split is not None and split not in SPLITS:
        raise DataError(f"{location}: split {shorten_value(split)!r} is not one of {', '.join(SPLITS)}")
    choices = values.get("choices")
    if choices is not None:
        choices = _read_texts(values, location, "", "choices")
        if not 2 <= len(choices) <= 26:
            raise DataError(f"{location}: {len(choices)} choices; there can be 2 to 26")
    image_id = values.get("image_id")
    raw_question = _require_value(values, location, "question")
    mark_count = raw_question.count(IMAGE_MARK) if isinstance(raw_question, str) else 0
    if mark_count not in (0, len(images)):
        raise DataError(f"{location}: {mark_count} {IMAGE_MARK} mark{'s' * (mark_count != 1)} and {len(images)} images")
    return FileRow(
        id=convert_to_text(_require_value(values, location, "id"), f"{location}: 'id'"),
        location=row_location,
        images=tuple(images),
        image_names=tuple(get_image_name(image, images_root) for image in images),
        image_id=None if image_id is None else convert_to_text(image_id, f"{location}: 'image_id'"),
        question=parse_question(raw_question, f"{location}: 'question'"),
        answers=_read_texts(values, location, "answer", "answers"),
        choices=choices,
        split=split,
        meta={key: value for key, value in values.items() if key not in ROW_KEYS},
        system=convert_to_optional_text(values.get("system"), f"{location}: 'system'"),
    )


def _describe_row_location(values: Mapping[str, Any], location: str) -> str:
    """The location of a row for messages, with its id if it has one."""
    row_id = values.get("id")
    has_text_id = isinstance(row_id, str | int) and not isinstance(row_id, bool) and str(row_id).strip()
    return f"{location} (id {str(row_id)[:60]})" if has_text_id else location


def _require_value(values: Mapping[str, Any], location: str, key: str) -> Any:
    if key not in values:
        raise DataError(f"{location}: no {key!r}; the line has {_join_keys(values)}")
    return values[key]


def _read_texts(
    values: Mapping[str, Any],
    location: str,
    single_key: str,
    list_key: str,
    *,
    allow_empty: bool = False,
    strip: bool = True,
) -> tuple[str, ...]:
    """The texts under `single_key` (one text) or `list_key` (a list of texts)."""
    if single_key in values and list_key in values:
        raise DataError(f"{location}: both {single_key!r} and {list_key!r}; give one of them")
    if single_key in values:
        return (convert_to_text(values[single_key], f"{location}: {single_key!r}", strip=strip),)
    if list_key not in values:
        raise DataError(f"{location}: no {single_key!r} or {list_key!r}; the line has {_join_keys(values)}")
    entries = values[list_key]
    if not isinstance(entries, list) or not (entries or allow_empty):
        raise DataError(f"{location}: {list_key!r} is {json.dumps(entries)[:40]}, not a list of texts")
    return tuple(convert_to_text(value, f"{location}: {list_key!r}", strip=strip) for value in entries)


def _join_keys(keys: Iterable[str]) -> str:
    return ", ".join(repr(key) for key in keys) or "nothing"
