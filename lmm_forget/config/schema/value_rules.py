"""What the value of a setting may be: each rule tests a value and describes, for messages and help, what is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

INTEGER_LIMIT = 2**63
"""What any whole number of a configuration is below: what torch takes as a seed."""


@dataclass(frozen=True)
class ValueRule:
    """A test of a value, and words for what passes it. `choices` are all values, where these are a few words."""

    is_valid: Callable[[Any], bool]
    expected: str
    choices: tuple[str, ...] = ()


def whole_number(minimum: int, *alternatives: Any) -> ValueRule:
    """A whole number of at least `minimum` (and below 2^63), or one of `alternatives`."""
    return _with_alternatives(
        lambda value: is_whole_number(value) and value >= minimum, f"a whole number of at least {minimum}", alternatives
    )


def number(minimum: float, *alternatives: Any) -> ValueRule:
    """A finite number of at least `minimum`, or one of `alternatives`."""
    return _with_alternatives(
        lambda value: is_finite_number(value) and value >= minimum, f"a number of at least {minimum:g}", alternatives
    )


def positive_number(*alternatives: Any, unit: str = "") -> ValueRule:
    """A finite number above 0, or one of `alternatives`."""
    expected = f"a number of {unit} above 0" if unit else "a number above 0"
    return _with_alternatives(lambda value: is_finite_number(value) and value > 0, expected, alternatives)


def share(*alternatives: Any) -> ValueRule:
    """A number from 0 to below 1, or one of `alternatives`."""
    return _with_alternatives(_is_share, "a share from 0 to below 1", alternatives)


def choice(*choices: str, optional: bool = False) -> ValueRule:
    """One of a few words; null as well if `optional`."""
    return ValueRule(lambda value: value in choices or (optional and value is None), " | ".join(choices), choices)


def list_of(*choices: str, expected: str) -> ValueRule:
    """A list, not empty, of different words out of `choices`."""
    return ValueRule(
        lambda value: (
            isinstance(value, list)
            and bool(value)
            and all(item in choices for item in value)
            and len({*value}) == len(value)
        ),
        expected,
    )


def mapping(expected: str, *alternatives: Any) -> ValueRule:
    """Keys and values, or one of `alternatives`."""
    return _with_alternatives(lambda value: isinstance(value, Mapping), expected, alternatives)


def rule(is_valid: Callable[[Any], bool], expected: str) -> ValueRule:
    """A rule of a setting's own."""
    return ValueRule(is_valid, expected)


def is_whole_number(value: Any) -> bool:
    """Whether a value is a whole number below 2^63; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < INTEGER_LIMIT


def is_finite_number(value: Any) -> bool:
    """Whether a value is a number that can be computed with; True is none."""
    return is_whole_number(value) or (isinstance(value, float) and math.isfinite(value))


def _is_share(value: Any) -> bool:
    return is_finite_number(value) and 0 <= value < 1


def _with_alternatives(is_valid: Callable[[Any], bool], expected: str, alternatives: Collection[Any]) -> ValueRule:
    words = ["null" if value is None else str(value) for value in alternatives]
    return ValueRule(
        lambda value: any(value is other or value == other for other in alternatives) or is_valid(value),
        ", or ".join([expected, *words]),
    )


BOOLEAN = rule(lambda value: isinstance(value, bool), "true or false")
TEXT = rule(lambda value: isinstance(value, str) and bool(value), "a text")
TEXT_OR_NULL = rule(
    lambda value: value is None or (isinstance(value, str | int) and not isinstance(value, bool) and bool(str(value))),
    "a text, or null",
)
ANYTHING = rule(lambda value: True, "any value")
NAMES = rule(lambda value: isinstance(value, list), "a list of names")
BETAS = rule(
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_share, value)),
    "two numbers from 0 to below 1",
)
RULE_LIST = rule(
    lambda value: value is None or (isinstance(value, list) and all(isinstance(each, Mapping) for each in value)),
    "a list of rules: [{component: language, sublayers: [...]}]",
)
