"""Convert stored values to the text of questions and answers, by the same rules for every file format.

docs/tasks.md ("How a stored value becomes text") lists the rules; `tests/tasks/test_values.py` tests them.
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
"""Marks in a text where an image belongs."""
_IMAGE_MARK_PATTERN = re.compile(rf"[ \t]*\n?{IMAGE_MARK}\n?")


class UnreadableCell(Exception):
    """Takes the place of a cell that cannot be read; its text gives the reason ("is not UTF-8 text")."""


def convert_to_text(value: Any, location: str, *, strip: bool = True) -> str:
    """Convert a stored value to text, without blanks at either end unless it names a file (`strip=False`).

    Text stays as it is written. A number becomes the shortest text that reads back as the same number of its type, a
    whole number without a decimal point; a date or a time becomes ISO 8601. Raises DataError, beginning with
    `location`, for every other value: null, NaN, infinities, true and false, bytes, lists, objects, blank text.
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
    """None for null and blank text, else `convert_to_text`. Raises DataError as that does."""
    if value is None or (isinstance(value, str) and not strip_invisible(value)):
        return None
    return convert_to_text(value, location)


def strip_invisible(text: str) -> str:
    """The text without invisible characters at its ends: blanks, line breaks, zero-width and control characters."""
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

    The model's chat format puts the images in front of the text. Raises DataError if no other text is left.
    """
    text = _IMAGE_MARK_PATTERN.sub("\n", convert_to_text(value, location)).strip()
    if not text:
        raise DataError(f"{location} is empty but for its image mark")
    return text


def get_group_name(value: Any) -> str:
    """The name of a group of samples, from their meta value: `convert_to_text`, or `str` of what that refuses."""
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
    """Describe a value in a message, with its type."""
    if value is None:
        return "null"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(bytes(value))} bytes"
    try:
        literal = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        literal = " ".join(repr(value).split())
    return f"{literal[:40]}, a {type(value).__name__}"
