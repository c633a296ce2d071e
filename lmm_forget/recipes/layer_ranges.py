"""Reading a layer range: `all`, `upper_half`, `lower_half`, `14:28`, `3`, or a comma-separated list of those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmm_forget.errors import PlanError

HALVES = ("upper_half", "lower_half")
LAYER_FORMS = "all, upper_half, lower_half, START:STOP (STOP excluded), a single index, or a comma-separated list"


def normalize_layers(layers: Any) -> str:
    """A layer choice from a config (text, whole number or list) as text; None means all."""
    if layers is None:
        return "all"
    if isinstance(layers, str):
        return layers.replace(" ", "") or "all"
    if isinstance(layers, Sequence):
        return ",".join(str(part) for part in layers)
    return str(layers)


def parse_layers(layers: str, num_layers: int) -> frozenset[int]:
    """The layer indices that `layers` names in a stack of `count` layers.

    The upper half of an odd stack has one layer more than the lower half. Raises PlanError for an unknown form, an
    empty range or an index outside 0 … count - 1.
    """
    layer_indices: set[int] = set()
    for part in layers.split(","):
        layer_indices |= _parse_part(part.strip(), layers, num_layers)
    return frozenset(layer_indices)


def _parse_part(part: str, full_text: str, num_layers: int) -> set[int]:
    if part == "all":
        return set(range(num_layers))
    if part == "upper_half":
        return set(range(num_layers // 2, num_layers))
    if part == "lower_half":
        return set(range(num_layers // 2))
    start_text, colon, stop_text = part.partition(":")
    try:
        start = int(start_text) if start_text or not colon else 0
        stop = (int(stop_text) if stop_text else num_layers) if colon else start + 1
    except ValueError:
        raise PlanError(f"layers={full_text} is not a layer range; write {LAYER_FORMS}") from None
    if start < 0 or stop > num_layers or start >= stop:
        # An unquoted 14:28 in a YAML file is the base-60 number 868.
        intended_range = f"{start // 60}:{start % 60}"
        hint = f' (for {intended_range} in a YAML file write "{intended_range}")' if not colon and start > 60 else ""
        raise PlanError(
            f"layers={full_text} does not fit: the model has layers 0 to {num_layers - 1} (0:{num_layers} is all){hint}"
        )
    return set(range(start, stop))
