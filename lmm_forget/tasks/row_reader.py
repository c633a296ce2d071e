"""Read the cells of a published row by field (`question`) instead of by column name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lmm_forget.errors import DataError
from lmm_forget.tasks.images import (
    ImageSource,
    get_image_name,
    hash_image_file,
    parse_image_source,
    read_image,
    read_image_size,
)
from lmm_forget.tasks.text_values import (
    UnreadableCell,
    convert_to_optional_text,
    convert_to_text,
    parse_question,
)


class RowReader:
    """Reads one row; `fields` maps a field of a sample ("question") to its column, or to several columns.

    Every method raises DataError that names the field, its column and what is wrong with the value.
    """

    def __init__(self, row: Mapping[str, Any], fields: Mapping[str, Any], images_root: Path | None = None) -> None:
        self.row = row
        self.fields = fields
        self.images_root = images_root

    def __contains__(self, field: str) -> bool:
        return self.fields.get(field) is not None

    def read_text(self, field: str) -> str:
        """The field as text that is not blank, by the rules of `convert_to_text`."""
        return convert_to_text(self._get_value(field), self._describe_field(field))

    def read_optional_text(self, field: str) -> str:
        """The field as text; "" if it is null, blank or not mapped to a column."""
        return (
            (convert_to_optional_text(self._get_value(field), self._describe_field(field)) or "")
            if field in self
            else ""
        )

    def read_question(self, field: str = "question") -> str:
        """The question without `<image>` marks, because the model's chat format puts the images in front."""
        return parse_question(self._get_value(field), self._describe_field(field))

    def read_texts(self, field: str) -> tuple[str, ...]:
        """The field as texts: a list, one text, or one text per mapped column without blank ones at the end."""
        column = self.fields.get(field)
        if isinstance(column, list | tuple):
            values = [self.row.get(name) for name in column]
            while values and (values[-1] is None or (isinstance(values[-1], str) and not values[-1].strip())):
                values.pop()
            return tuple(
                convert_to_text(value, f"{field!r} (column {name})")
                for name, value in zip(column, values, strict=False)
            )
        stored = self._get_value(field)
        if not isinstance(stored, list):
            return (self.read_text(field),)
        if not stored:
            raise DataError(f"{self._describe_field(field)} is an empty list")
        return tuple(convert_to_text(value, self._describe_field(field)) for value in stored)

    def read_images(self, field: str = "image") -> tuple[Image.Image, ...]:
        """The field's images as RGB; empty if the field is not mapped."""
        if field not in self:
            return ()
        images = []
        for index, source in enumerate(self.list_image_sources(field)):
            try:
                images.append(read_image(source))
            except DataError as error:
                position = f" number {index}" if index else ""
                raise DataError(f"{error}{position}") from None
        return tuple(images)

    def read_image_sizes(self, field: str = "image") -> list[tuple[int, int]]:
        """(width, height) in pixels of the field's images, which are not decoded; empty if the field is not mapped."""
        return [read_image_size(source) for source in self.list_image_sources(field)]

    def list_image_sources(self, field: str = "image") -> list[ImageSource]:
        """Sources of the field's images: bytes, files below `images_root`, or URLs; empty if not mapped."""
        if field not in self:
            return []
        return [_parse_stored_image(stored, self.images_root or Path()) for stored in self._list_image_values(field)]

    def hash_images(self, field: str = "image") -> str:
        """A hash of the images' bytes (16 hex digits); equal bytes give the same hash, wherever they are stored."""
        digests = [
            hash_image_file(source) or get_image_name(source, Path()) for source in self.list_image_sources(field)
        ]
        return digests[0][:16] if len(digests) == 1 else hashlib.sha256("/".join(digests).encode()).hexdigest()[:16]

    def _list_image_values(self, field: str) -> list[Any]:
        raw = self._get_value(field)
        if raw is None:
            raise DataError(f"{self._describe_field(field)} is null, not an image")
        return raw if isinstance(raw, list) else [raw]

    def _get_value(self, field: str) -> Any:
        column = self.fields.get(field)
        if column is None:
            raise DataError(f"no column is given for {field!r}; the task's fields has {', '.join(self.fields)}")
        raw = self.row.get(column)
        if isinstance(raw, UnreadableCell):
            raise DataError(f"{self._describe_field(field)} {raw}")
        return raw

    def _describe_field(self, field: str) -> str:
        column = self.fields.get(field)
        return f"{field!r}" if column == field else f"{field!r} (column {column})"


def _parse_stored_image(stored: Any, root: Path) -> ImageSource:
    content, path = stored, None
    if isinstance(stored, dict):
        content, path = stored.get("bytes"), stored.get("path")
    if isinstance(content, bytes):
        return content
    name = path if isinstance(stored, dict) else stored
    if not isinstance(name, str) or not name:
        kind = "null" if name is None else f"a {type(name).__name__}" if name else "empty"
        raise DataError(f"image is {kind}, not an image, a path or a data URL")
    return parse_image_source(name, root)
