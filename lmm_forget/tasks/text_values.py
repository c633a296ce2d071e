"""From a stored value to the text that a model reads or is taught: one set of rules for every reader.

docs/tasks.md ("How a stored value becomes text") lists them; `tests/tasks/test_values.py` holds them as a table.
"""

from __future__ import annotations

import datetime
import decimal
import json
import re
import unicodedata
from typing import Any

import numpy as np

from lmm_forget.errors import DataError

IMAGE_MARK = "<image>"
"""Shows in a text where a picture belongs."""
_IMAGE_MARK_PATTERN = re.compile(rf"[ \t]*\n?{IMAGE_MARK}\n?")


class UnreadableCell(Exception):
    """Stands in a row in the place of a cell that cannot be read; its text says why ("is not UTF-8 text")."""


def convert_to_text(value: Any, location: str, *, strip: bool = True) -> str:
    """A stored value as text, without blanks at either end unless it names a file (`strip=False`).

    Text stays as it is written. A number becomes the shortest text that reads back as the same number in its own
    type, a whole one without a decimal point; a date or a time becomes ISO 8601. Raises DataError, beginning with
    `where`, for everything that is no text or that nothing is known of: null, NaN, infinities, true and false, bytes,
    lists, objects, blank text.
    """
    if isinstance(value, UnreadableCell):
        raise DataError(f"{location} {value}")
    if isinstance(value, str):
        text = str(value)
    elif isinstance(value, bool | np.bool_):
        word = "true" if value else "false"
        raise DataError(f'{location} is {word}, not a text; store the word that stands for it ("yes", "true", …)')
    elif isinstance(value, int | np.integer) and not isinstance(value, np.timedelta64):
        text = str(int(value))
    elif isinstance(value, float | np.floating):
        text = _format_float(value, location)
    elif isinstance(value, decimal.Decimal):
        text = _format_decimal(value, location)
    elif isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        if value != value:  # pandas' NaT
            raise DataError(f"{location} is not a time (NaT), not a text")
        text = value.isoformat()
    elif isinstance(value, np.datetime64) and not np.isnat(value):
        text = str(value)
    else:
        raise DataError(f"{location} is {_describe_value(value)}, not a text")
    if strip:
        text = strip_invisible(text)
    if not strip_invisible(text):
        raise DataError(f"{location} is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{location} holds half of a surrogate pair, which no text file can store")
    return text


def convert_to_optional_text(value: Any, location: str) -> str | None:
    """`convert_to_text`, or None where there is nothing: null or blank text. Raises DataError like it."""
    if value is None or (isinstance(value, str) and not strip_invisible(value)):
        return None
    return convert_to_text(value, location)


def strip_invisible(text: str) -> str:
    """A text without what nobody sees at its ends: blanks, line breaks, zero-width and control characters."""
    first, last = 0, len(text)
    while first < last and _is_invisible(text[first]):
        first += 1
    while last > first and _is_invisible(text[last - 1]):
        last -= 1
    return text[first:last]


def _is_invisible(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")


def parse_question(value: Any, location: str) -> str:
    """A question as text, without its `<image>` marks and the line breaks around them.

    The pictures are put in front by the model's own chat format. Raises DataError where nothing else is left.
    """
    text = _IMAGE_MARK_PATTERN.sub("\n", convert_to_text(value, location)).strip()
    if not text:
        raise DataError(f"{location} is empty but for its image mark")
    return text


def get_group_name(value: Any) -> str:
    """The name of the group that a sample's meta value stands for: `convert_to_text`, or Python's text of
    anything else.
    """
    try:
        return convert_to_text(value, "")
    except DataError:
        return str(value)


def _format_float(value: float | np.floating[Any], location: str) -> str:
    if value != value:
        raise DataError(f"{location} is NaN, not a text")
    if np.isinf(value):
        raise DataError(f"{location} is {'-' if value < 0 else ''}Infinity, not a text")
    if value == 0:
        return "0"
    if float(value).is_integer():
        return np.format_float_positional(value, trim="-")
    return repr(value) if type(value) is float else str(value)


def _format_decimal(value: decimal.Decimal, location: str) -> str:
    if not value.is_finite():
        raise DataError(f"{location} is {value}, not a text")
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _describe_value(value: Any) -> str:
    """A value as a message shows it, and its type where that helps."""
    if value is None:
        return "null"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(bytes(value))} bytes"
    try:
        literal = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        literal = " ".join(repr(value).split())
    return f"{literal[:40]}, a {type(value).__name__}"
