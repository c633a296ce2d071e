"""Which part of a configuration changes weights, answers or neither, read from the effects of its settings."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from lmm_forget.config.schema.job_config import JobConfig
from lmm_forget.config.schema.setting import Effect, list_settings


def select_fields(node: Mapping[str, Any], effect: Effect, schema: type = JobConfig) -> dict[str, Any]:
    """A copy of the fields of a configuration node that have one of the effects in `effect`, groups included.

    Fields that `schema` does not know count as changing weights.
    """
    settings = list_settings(schema)
    selected = {}
    for name, value in node.items():
        setting = settings.get(name)
        if not (Effect.WEIGHTS if setting is None else setting.effect) & effect:
            continue
        if setting is not None and isinstance(value, Mapping):
            if setting.schema is not None:
                value = select_fields(value, effect, setting.schema)
            elif setting.item_schema is not None:
                value = {
                    key: select_fields(item, effect, setting.item_schema) if isinstance(item, Mapping) else item
                    for key, item in value.items()
                }
        selected[name] = copy.deepcopy(value)
    return selected


def list_fields(schema: type, effect: Effect) -> list[str]:
    """Names of the fields of `schema` that have one of the effects in `effect`."""
    return [name for name, setting in list_settings(schema).items() if setting.effect & effect]


def find_effect(key: str) -> Effect:
    """The effect of a dotted key of a job's configuration; that of a key without a field is WEIGHTS."""
    schema: type | None = JobConfig
    effect, parts = Effect.WEIGHTS, key.split(".")
    while parts and schema is not None:
        setting = list_settings(schema).get(parts.pop(0))
        if setting is None:
            return Effect.WEIGHTS
        effect, schema = setting.effect, setting.schema
        if effect == Effect.NEITHER:
            return effect
        if setting.item_schema is not None and len(parts) > 1:
            parts, schema = parts[1:], setting.item_schema
    return effect
