"""Convert rows of Arrow tables to Python values: class labels to names, short floats to numpy floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lmm_forget.tasks.text_values import UnreadableCell

ValueConverter = Callable[[Any], Any]


class ArrowRowDecoder:
    """Decodes the rows of Arrow tables whose columns have these `features` (of the library `datasets`).

    Also inside lists and structs, a class label becomes its name (-1, which means "no label", becomes None) and a float
    of 16 or 32 bits becomes a numpy float of that size, so that its shortest text is known. Everything else is the
    result of `to_pylist`. A text that is not UTF-8 and a label without a name become `UnreadableCell`.
    """

    def __init__(self, features: Mapping[str, Any] | None) -> None:
        self.features = dict(features or {})
        self._converters: dict[tuple[str, str], ValueConverter | None] = {}

    @property
    def class_labels(self) -> dict[str, list[str]]:
        """Column name -> names of its class labels, in the order of their numbers."""
        return {
            name: list(labels)
            for name, feature in self.features.items()
            if (labels := _get_label_names(feature)) is not None
        }

    def decode_rows(self, table: Any) -> list[dict[str, Any]]:
        """The rows of an Arrow table as dictionaries, column name -> value."""
        try:
            rows = list(table.to_pylist())
        except UnicodeDecodeError:
            rows = [_decode_single_row(table.slice(i, 1)) for i in range(table.num_rows)]
        for column in table.schema:
            convert = self._get_converter(column)
            if convert is not None:
                for row in rows:
                    if not isinstance(row[column.name], UnreadableCell):
                        row[column.name] = convert(row[column.name])
        return rows

    def _get_converter(self, column: Any) -> ValueConverter | None:
        key = (column.name, str(column.type))
        if key not in self._converters:
            self._converters[key] = _make_converter(column.type, self.features.get(column.name))
        return self._converters[key]


def _make_converter(arrow_type: Any, feature: Any) -> ValueConverter | None:
    """A function that converts a value of this Arrow type and feature; None if values need no conversion."""
    import pyarrow as pa  # slow to import, needed only for published data sets

    names = _get_label_names(feature)
    if names is not None and pa.types.is_integer(arrow_type):
        return lambda value: _get_label_name(value, names)
    if pa.types.is_float32(arrow_type) or pa.types.is_float16(arrow_type):
        numpy_type = np.float32 if pa.types.is_float32(arrow_type) else np.float16
        return lambda value: None if value is None else numpy_type(value)
    if pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type) or pa.types.is_fixed_size_list(arrow_type):
        convert_element = _make_converter(arrow_type.value_type, _get_element_feature(feature))
        return convert_element and (lambda value: None if value is None else [convert_element(part) for part in value])
    if pa.types.is_struct(arrow_type):
        fields = feature if isinstance(feature, Mapping) else {}
        field_converters = {part.name: _make_converter(part.type, fields.get(part.name)) for part in arrow_type}
        if any(field_converters.values()):
            return lambda value: (
                None
                if value is None
                else {name: (field_converters.get(name) or _return_unchanged)(part) for name, part in value.items()}
            )
    return None


def _get_element_feature(feature: Any) -> Any:
    """The feature of a list's elements."""
    if isinstance(feature, list | tuple):
        return feature[0] if feature else None
    return getattr(feature, "feature", None)


def _get_label_names(feature: Any) -> list[str] | None:
    """The names of a class label feature; None for every other feature."""
    return list(feature.names) if type(feature).__name__ == "ClassLabel" else None


def _get_label_name(value: int | None, names: list[str]) -> Any:
    if value is None or value == -1:
        return None
    return names[value] if 0 <= value < len(names) else UnreadableCell(f"is label {value} of {len(names)}")


def _return_unchanged(value: Any) -> Any:
    return value


def _decode_single_row(table: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in table.column_names:
        try:
            row[name] = table[name].to_pylist()[0]
        except UnicodeDecodeError:
            row[name] = UnreadableCell("is not UTF-8 text")
    return row
