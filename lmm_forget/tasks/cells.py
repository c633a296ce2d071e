"""The cells of one published row, read by what they mean instead of by their column's name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lmm_forget.errors import DataError
from lmm_forget.tasks.images import Source, content_digest, name_of, picture_size, read_image, source_of
from lmm_forget.tasks.values import Unreadable, optional_text, question_of, text_of


class Cells:
    """A row as a task reads it: `fields` maps what a value means ("question") to its column, or several columns.

    Every method raises DataError naming the field, its column and what stands there.
    """

    def __init__(
        self, row: Mapping[str, Any], fields: Mapping[str, Any], images_root: Path | None = None
    ) -> None:
        self.row = row
        self.fields = fields
        self.images_root = images_root

    def __contains__(self, field: str) -> bool:
        return self.fields.get(field) is not None

    def text(self, field: str) -> str:
        """The field as a text that is not blank, by the rules of `values.text_of`."""
        return text_of(self._raw(field), self._where(field))

    def optional(self, field: str) -> str:
        """The field as a text; "" where it is not mapped, null or blank."""
        return (optional_text(self._raw(field), self._where(field)) or "") if field in self else ""

    def question(self, field: str = "question") -> str:
        """A question without `<image>` marks (the picture is put in front by the model's own chat format)."""
        return question_of(self._raw(field), self._where(field))

    def texts(self, field: str) -> tuple[str, ...]:
        """The field as texts: a list, one text, or one text per mapped column. Blank options stay out at the end."""
        column = self.fields.get(field)
        if isinstance(column, list | tuple):
            found = [self.row.get(name) for name in column]
            while found and (found[-1] is None or (isinstance(found[-1], str) and not found[-1].strip())):
                found.pop()
            return tuple(
                text_of(value, f"{field!r} (column {name})")
                for name, value in zip(column, found, strict=False)
            )
        raw = self._raw(field)
        if not isinstance(raw, list):
            return (self.text(field),)
        if not raw:
            raise DataError(f"{self._where(field)} is an empty list")
        return tuple(text_of(value, self._where(field)) for value in raw)

    def value(self, field: str) -> Any:
        """The field as it is stored."""
        return self._raw(field)

    def images(self, field: str = "image") -> tuple[Image.Image, ...]:
        """The field's pictures as RGB; an empty tuple where the field is not mapped."""
        if field not in self:
            return ()
        found = []
        for number, source in enumerate(self.sources(field)):
            try:
                found.append(read_image(source))
            except DataError as error:
                which = f" number {number}" if number else ""
                raise DataError(f"{error}{which}") from None
        return tuple(found)

    def sizes(self, field: str = "image") -> list[tuple[int, int]]:
        """Width and height of the field's pictures, which are not decoded; empty where the field is not mapped."""
        return [picture_size(source) for source in self.sources(field)]

    def sources(self, field: str = "image") -> list[Source]:
        """Where the field's pictures are: bytes in the row, files below `images_root`, or URLs; empty if not mapped."""
        if field not in self:
            return []
        return [_source(stored, self.images_root or Path()) for stored in self._stored(field)]

    def image_name(self, field: str = "image") -> str:
        """A name for the pictures' content: equal bytes, equal name, wherever they lie."""
        found = [content_digest(source) or name_of(source, Path()) for source in self.sources(field)]
        return found[0][:16] if len(found) == 1 else hashlib.sha256("/".join(found).encode()).hexdigest()[:16]

    def _stored(self, field: str) -> list[Any]:
        raw = self._raw(field)
        if raw is None:
            raise DataError(f"{self._where(field)} is null, not an image")
        return raw if isinstance(raw, list) else [raw]

    def _raw(self, field: str) -> Any:
        column = self.fields.get(field)
        if column is None:
            raise DataError(
                f"no column is given for {field!r}; the task's fields has {', '.join(self.fields)}"
            )
        raw = self.row.get(column)
        if isinstance(raw, Unreadable):
            raise DataError(f"{self._where(field)} {raw}")
        return raw

    def _where(self, field: str) -> str:
        column = self.fields.get(field)
        return f"{field!r}" if column == field else f"{field!r} (column {column})"


def _source(stored: Any, root: Path) -> Source:
    content, path = stored, None
    if isinstance(stored, dict):
        content, path = stored.get("bytes"), stored.get("path")
    if isinstance(content, bytes):
        return content
    name = path if isinstance(stored, dict) else stored
    if not isinstance(name, str) or not name:
        kind = "null" if name is None else f"a {type(name).__name__}" if name else "empty"
        raise DataError(f"image is {kind}, not a picture, a path or a data URL")
    return source_of(name, root)
