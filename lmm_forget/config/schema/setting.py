"""How a configuration class says what each of its fields means, may hold, and changes.

The classes of this package are stdlib dataclasses whose fields carry a `Setting` as metadata. pydantic would have to
be taught the same three things (help, effect, one-line messages that name key, value and what would be right), would
add half a second to every `--help` and another dependency, and Hydra's structured configs know neither ranges nor
alternatives such as `auto`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Flag, auto
from functools import cache
from typing import Any

from lmm_forget.config.schema.value_rules import ValueRule


class Effect(Flag):
    """What another value of a setting changes.

    NEITHER: where and how fast a job runs, at most the last bits of a sum. WEIGHTS: the weights of a stage. ANSWERS:
    with equal weights, what is asked, answered, scored or recorded. LOCATION: where an input lies or how it is fetched;
    keys hold a fingerprint of its content instead, but a job is another one until that content is read.
    """

    NEITHER = 0
    WEIGHTS = auto()
    ANSWERS = auto()
    LOCATION = auto()

    def describe(self) -> str:
        """The effect in a word or two, for help and documentation."""
        return " and ".join(str(each.name).lower() for each in Effect if each in self) or "neither"


@dataclass(frozen=True)
class Setting:
    """Meaning of one field. `schema` is the class of a field that holds keys and values of its own, `item_schema` that
    of every value where the keys are names (tasks)."""

    help: str
    rule: ValueRule
    effect: Effect = Effect.WEIGHTS
    schema: type | None = None
    item_schema: type | None = None

    @property
    def is_written(self) -> bool:
        """Whether resolving a configuration writes the field, which nobody sets."""
        return self.help.endswith("written, never set")


@dataclass(frozen=True, kw_only=True)
class OpenGroup:
    """A group that may hold fields of the user's own, kept in `extra`; they count as changing weights."""

    extra: Mapping[str, Any] = field(default_factory=dict)


def setting(help: str, rule: ValueRule, effect: Effect = Effect.WEIGHTS, **default: Any) -> Any:
    """A dataclass field with its meaning; `default` is `default=` or `default_factory=` of `dataclasses.field`.

    A setting without a default has to stand in the YAML. One without an effect counts as changing weights.
    """
    return field(metadata={"setting": Setting(help, rule, effect)}, **default)


def group(
    help: str,
    rule: ValueRule,
    effect: Effect = Effect.WEIGHTS,
    *,
    schema: type | None = None,
    item_schema: type | None = None,
    **default: Any,
) -> Any:
    """A dataclass field that holds keys and values: `schema` describes them, or `item_schema` each value."""
    return field(metadata={"setting": Setting(help, rule, effect, schema, item_schema)}, **default)


@cache
def list_settings(schema: type) -> dict[str, Setting]:
    """The settings of a configuration class by name, in its order."""
    return {each.name: each.metadata["setting"] for each in fields(schema) if "setting" in each.metadata}
