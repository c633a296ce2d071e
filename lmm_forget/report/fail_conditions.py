"""Conditions on a comparison, at which a script stops: `heldout < -1.0`, `worst.high < 0`, `tiny_ai2d.lost > 20`."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lmm_forget.errors import ConfigError, DataError

CONDITION_FIELDS = ("value", "low", "high", "p_value", "p_holm", "lost", "gained", "resolvable")
COMPARATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_PATTERN = re.compile(
    r"\s*(?P<name>[^\s<>=]+)\s*(?P<sign><=|>=|<|>)\s*(?P<number>[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?)\s*"
)


@dataclass(frozen=True)
class FailCondition:
    """`name.field sign number`, as in `heldout.value < -1.0`."""

    text: str
    name: str
    field: str
    comparator: str
    threshold: float

    @classmethod
    def parse(cls, text: str) -> FailCondition:
        """Parse a condition. Raises ConfigError for invalid text."""
        match = _PATTERN.fullmatch(text)
        if not match:
            raise ConfigError(f'--fail-if "{text}" is no condition, expected e.g. "heldout < -1.0"')
        name, _, field = match["name"].rpartition(".")
        if field not in CONDITION_FIELDS:
            name, field = match["name"], "value"
        return cls(text, name, field, match["sign"], float(match["number"]))

    def evaluate(self, comparison: Mapping[str, Any]) -> dict[str, Any]:
        """{condition, value, holds} for a result of `compare_job_stages`.

        Raises ConfigError for an unknown name, DataError if the value does not exist: a condition that cannot be
        checked must not count as passed.
        """
        entry = self._find_entry(comparison)
        if self.field not in entry:
            raise ConfigError(f'--fail-if "{self.text}": {self.name} has no {self.field}')
        value = entry[self.field]
        if value is None:
            raise DataError(f'--fail-if "{self.text}" cannot be checked: {self.name} has no {self.field} here')
        return {
            "condition": self.text,
            "value": value,
            "holds": COMPARATORS[self.comparator](value, self.threshold),
        }

    def _find_entry(self, comparison: Mapping[str, Any]) -> Mapping[str, Any]:
        benchmarks: Mapping[str, Mapping[str, Any]] = comparison["benchmarks"]
        if self.name in benchmarks:
            return benchmarks[self.name]
        if self.name in ("heldout", "targets"):
            shared_entry = comparison[self.name]
            if shared_entry is None:
                raise DataError(
                    f'--fail-if "{self.text}" cannot be checked: the two share no {self.name.rstrip("s")} task'
                )
            return dict(shared_entry)
        if self.name == "worst":
            heldout_entries = [entry for entry in benchmarks.values() if entry["role"] == "held-out"]
            if not heldout_entries:
                raise DataError(f'--fail-if "{self.text}" cannot be checked: the two share no held-out task')
            return min(heldout_entries, key=lambda entry: float(entry["value"]))
        known = ["heldout", "targets", "worst", *benchmarks]
        near = difflib.get_close_matches(self.name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f'--fail-if "{self.text}": no {self.name}; there are {", ".join(known)}{hint}')
