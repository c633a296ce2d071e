"""Reading a layer range: `all`, `upper_half`, `lower_half`, `14:28`, `3`, or a comma-separated list of those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmm_forget.errors import PlanError

HALVES = ("upper_half", "lower_half")
FORMS = "all, upper_half, lower_half, START:STOP (STOP excluded), a single index, or a comma-separated list"


def canonical(layers: Any) -> str:
    """A layer choice from a config (text, whole number or list) as text; None means all."""
    if layers is None:
        return "all"
    if isinstance(layers, str):
        return layers.replace(" ", "") or "all"
    if isinstance(layers, Sequence):
        return ",".join(str(part) for part in layers)
    return str(layers)


def parse_layers(layers: str, count: int) -> frozenset[int]:
    """The layer indices that `layers` names in a stack of `count` layers.

    The upper half of an odd stack has one layer more than the lower half. Raises PlanError for an unknown form, an
    empty range or an index outside 0 … count - 1.
    """
    chosen: set[int] = set()
    for part in layers.split(","):
        chosen |= _one(part.strip(), layers, count)
    return frozenset(chosen)


def _one(part: str, whole: str, count: int) -> set[int]:
    if part == "all":
        return set(range(count))
    if part == "upper_half":
        return set(range(count // 2, count))
    if part == "lower_half":
        return set(range(count // 2))
    start_text, colon, stop_text = part.partition(":")
    try:
        start = int(start_text) if start_text or not colon else 0
        stop = (int(stop_text) if stop_text else count) if colon else start + 1
    except ValueError:
        raise PlanError(f"layers={whole} is not a layer range; write {FORMS}") from None
    if start < 0 or stop > count or start >= stop:
        # An unquoted 14:28 in a YAML file is the base-60 number 868.
        meant = f"{start // 60}:{start % 60}"
        hint = f' (for {meant} in a YAML file write "{meant}")' if not colon and start > 60 else ""
        raise PlanError(
            f"layers={whole} does not fit: the model has layers 0 to {count - 1} (0:{count} is all){hint}"
        )
    return set(range(start, stop))
