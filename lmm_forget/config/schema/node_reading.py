"""From a plain configuration node to an instance of its class; every refusal says what would be right."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from lmm_forget.config.schema.setting import OpenGroup, Setting, list_settings
from lmm_forget.config.schema.value_rules import INTEGER_LIMIT
from lmm_forget.config.suggestions import suggest_closest
from lmm_forget.errors import ConfigError

T = TypeVar("T")


def read_settings(schema: type[T], node: Mapping[str, Any], path: str, label: str | None = None) -> T:
    """A checked instance of `schema` from a node that stands at `path` (`logger`); `label` names it in messages.

    Raises ConfigError.
    """
    check_fields_known(schema, node, path, label)
    check_values(schema, node, path)
    return build_settings(schema, node)


def check_fields_known(schema: type, node: Mapping[str, Any], path: str = "", label: str | None = None) -> None:
    """Raise ConfigError for a key, at any depth, that a closed class has no field for."""
    settings = list_settings(schema)
    for key in () if issubclass(schema, OpenGroup) else node:
        if key not in settings:
            known_keys = sorted(name for name, each in settings.items() if not each.is_written)
            raise ConfigError(
                f"there is no {_join_path(path, key)}; {label or path or 'the configuration'} has: "
                f"{', '.join(known_keys)}{suggest_closest(str(key), known_keys)}"
            )
    for name, each in settings.items():
        child = node.get(name)
        if each.schema is not None and isinstance(child, Mapping):
            check_fields_known(each.schema, child, _join_path(path, name))


def check_values(schema: type, node: Mapping[str, Any], path: str = "", optional_groups: Collection[str] = ()) -> None:
    """Raise ConfigError for the first value that is missing or cannot be used."""
    required = {each.name for each in fields(schema) if each.default is MISSING and each.default_factory is MISSING}
    for name, each in list_settings(schema).items():
        key = _join_path(path, name)
        if name not in node:
            if name in required and name not in optional_groups:
                raise ConfigError(f"the configuration lacks {key}; a {path or 'run'} YAML of your own must set it")
            continue
        check_value(key, node[name], each)
        if each.schema is not None and node[name] is not None:
            check_values(each.schema, node[name], key)


def check_value(key: str, value: Any, setting: Setting) -> None:
    """Raise ConfigError where the setting `key` cannot hold `value`."""
    rule = setting.rule
    if rule.is_valid(value):
        return
    if rule.choices:
        raise ConfigError(
            f"{key}={value} is not known; choose one of: {', '.join(rule.choices)}"
            f"{suggest_closest(str(value), rule.choices)}"
        )
    limit_note = " (and below 2^63)" if isinstance(value, int) and abs(value) >= INTEGER_LIMIT else ""
    raise ConfigError(
        f"{key}={'null' if value is None else value} cannot be used; it must be {rule.expected}{limit_note}"
    )


def build_settings(schema: type[T], node: Mapping[str, Any]) -> T:
    """An instance of `schema` from a node that was checked; lists become tuples, keys without a field go to `extra`."""
    settings = list_settings(schema)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, each in settings.items():
        if name not in node:
            continue
        value = node[name]
        if each.schema is not None:
            if value is None:
                value = build_settings(each.schema, {}) if _has_default_factory(schema, name) else None
            else:
                value = build_settings(each.schema, value)
        elif each.item_schema is not None:
            value = {str(key): build_settings(each.item_schema, item) for key, item in value.items()}
        values[name] = tuple(value) if isinstance(value, list) else value
    if issubclass(schema, OpenGroup):
        values["extra"] = {key: value for key, value in node.items() if key not in settings}
    return schema(**values)


def _has_default_factory(schema: type, name: str) -> bool:
    return any(each.name == name and each.default_factory is not MISSING for each in fields(schema))  # type: ignore[arg-type]


def _join_path(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
