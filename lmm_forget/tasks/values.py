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

MARK = "<image>"
"""Shows in a text where a picture belongs."""
_MARK = re.compile(rf"[ \t]*\n?{MARK}\n?")


class Unreadable(Exception):
    """Stands in a row in the place of a cell that cannot be read; its text says why ("is not UTF-8 text")."""


def text_of(value: Any, where: str, *, strip: bool = True) -> str:
    """A stored value as text, without blanks at either end unless it names a file (`strip=False`).

    Text stays as it is written. A number becomes the shortest text that reads back as the same number in its own
    type, a whole one without a decimal point; a date or a time becomes ISO 8601. Raises DataError, beginning with
    `where`, for everything that is no text or that nothing is known of: null, NaN, infinities, true and false, bytes,
    lists, objects, blank text.
    """
    if isinstance(value, Unreadable):
        raise DataError(f"{where} {value}")
    if isinstance(value, str):
        text = str(value)
    elif isinstance(value, bool | np.bool_):
        said = "true" if value else "false"
        raise DataError(
            f'{where} is {said}, not a text; store the word that stands for it ("yes", "true", …)'
        )
    elif isinstance(value, int | np.integer) and not isinstance(value, np.timedelta64):
        text = str(int(value))
    elif isinstance(value, float | np.floating):
        text = _float(value, where)
    elif isinstance(value, decimal.Decimal):
        text = _decimal(value, where)
    elif isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        if value != value:  # pandas' NaT
            raise DataError(f"{where} is not a time (NaT), not a text")
        text = value.isoformat()
    elif isinstance(value, np.datetime64) and not np.isnat(value):
        text = str(value)
    else:
        raise DataError(f"{where} is {_named(value)}, not a text")
    if strip:
        text = trimmed(text)
    if not trimmed(text):
        raise DataError(f"{where} is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{where} holds half of a surrogate pair, which no text file can store")
    return text


def optional_text(value: Any, where: str) -> str | None:
    """`text_of`, or None where there is nothing: null or blank text. Raises DataError like it."""
    if value is None or (isinstance(value, str) and not trimmed(value)):
        return None
    return text_of(value, where)


def trimmed(text: str) -> str:
    """A text without what nobody sees at its ends: blanks, line breaks, zero-width and control characters."""
    first, last = 0, len(text)
    while first < last and _unseen(text[first]):
        first += 1
    while last > first and _unseen(text[last - 1]):
        last -= 1
    return text[first:last]


def _unseen(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")


def question_of(value: Any, where: str) -> str:
    """A question as text, without its `<image>` marks and the line breaks around them.

    The pictures are put in front by the model's own chat format. Raises DataError where nothing else is left.
    """
    text = _MARK.sub("\n", text_of(value, where)).strip()
    if not text:
        raise DataError(f"{where} is empty but for its image mark")
    return text


def group_of(value: Any) -> str:
    """The name of the group that a sample's meta value stands for: `text_of`, or Python's text of anything else."""
    try:
        return text_of(value, "")
    except DataError:
        return str(value)


def _float(value: float | np.floating[Any], where: str) -> str:
    if value != value:
        raise DataError(f"{where} is NaN, not a text")
    if np.isinf(value):
        raise DataError(f"{where} is {'-' if value < 0 else ''}Infinity, not a text")
    if value == 0:
        return "0"
    if float(value).is_integer():
        return np.format_float_positional(value, trim="-")
    return repr(value) if type(value) is float else str(value)


def _decimal(value: decimal.Decimal, where: str) -> str:
    if not value.is_finite():
        raise DataError(f"{where} is {value}, not a text")
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _named(value: Any) -> str:
    """A value as a message shows it, and its type where that helps."""
    if value is None:
        return "null"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(bytes(value))} bytes"
    try:
        shown = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        shown = " ".join(repr(value).split())
    return f"{shown[:40]}, a {type(value).__name__}"
