"""Columns of an Arrow table as Python values that keep what the column says of them: label names, short floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lmm_forget.tasks.values import Unreadable

Convert = Callable[[Any], Any]


class Columns:
    """Reads the rows of Arrow tables with these `features` (of `datasets`).

    A class label becomes its name (-1, which stands for no label, null), a float of 16 or 32 bits one of numpy's, so
    that its shortest text is known; in lists and structs too. Everything else is what `to_pylist` makes of it. A
    text that is not UTF-8, and a label without a name, stand as `Unreadable`.
    """

    def __init__(self, features: Mapping[str, Any] | None) -> None:
        self.features = dict(features or {})
        self._converts: dict[tuple[str, str], Convert | None] = {}

    @property
    def labels(self) -> dict[str, list[str]]:
        """The names of every column of class labels, by number."""
        return {
            name: list(found) for name, one in self.features.items() if (found := _names(one)) is not None
        }

    def rows(self, table: Any) -> list[dict[str, Any]]:
        """The rows of an Arrow table."""
        try:
            found = list(table.to_pylist())
        except UnicodeDecodeError:
            found = [_cell_by_cell(table.slice(i, 1)) for i in range(table.num_rows)]
        for column in table.schema:
            convert = self._convert(column)
            if convert is not None:
                for row in found:
                    if not isinstance(row[column.name], Unreadable):
                        row[column.name] = convert(row[column.name])
        return found

    def _convert(self, column: Any) -> Convert | None:
        key = (column.name, str(column.type))
        if key not in self._converts:
            self._converts[key] = _converter(column.type, self.features.get(column.name))
        return self._converts[key]


def _converter(kind: Any, feature: Any) -> Convert | None:
    """What to do to a value of an Arrow type and its feature; None where it can stay as it is."""
    import pyarrow as pa

    names = _names(feature)
    if names is not None and pa.types.is_integer(kind):
        return lambda value: _name(value, names)
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        to = np.float32 if pa.types.is_float32(kind) else np.float16
        return lambda value: None if value is None else to(value)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        within = _converter(kind.value_type, _within(feature))
        return within and (lambda value: None if value is None else [within(one) for one in value])
    if pa.types.is_struct(kind):
        fields = feature if isinstance(feature, Mapping) else {}
        parts = {part.name: _converter(part.type, fields.get(part.name)) for part in kind}
        if any(parts.values()):
            return lambda value: (
                None
                if value is None
                else {name: (parts.get(name) or _same)(one) for name, one in value.items()}
            )
    return None


def _within(feature: Any) -> Any:
    """The feature of a list's elements."""
    if isinstance(feature, list | tuple):
        return feature[0] if feature else None
    return getattr(feature, "feature", None)


def _names(feature: Any) -> list[str] | None:
    """The names of a class label; None for every other feature."""
    return list(feature.names) if type(feature).__name__ == "ClassLabel" else None


def _name(value: int | None, names: list[str]) -> Any:
    if value is None or value == -1:
        return None
    return names[value] if 0 <= value < len(names) else Unreadable(f"is label {value} of {len(names)}")


def _same(value: Any) -> Any:
    return value


def _cell_by_cell(table: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in table.column_names:
        try:
            found[name] = table[name].to_pylist()[0]
        except UnicodeDecodeError:
            found[name] = Unreadable("is not UTF-8 text")
    return found
