"""The order in which a sequence teaches its skills."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmm_forget.errors import ConfigError


def order_tasks(sequence: Mapping[str, Any]) -> list[str]:
    """Task names of a sequence node in the order of teaching.

    A node with `task` teaches that one; one with `order` permutes its `tasks`; any other teaches `tasks` as listed
    (a name may stand there twice: it is taught twice). Raises ConfigError.
    """
    tasks = parse_name_list("sequence.tasks", sequence.get("tasks"))
    if "task" in sequence:
        task = sequence.get("task")
        if not isinstance(task, str):
            problem = " is empty" if task is None else f"={task} is no name"
            raise ConfigError(
                f"sequence.task{problem}; name the one skill to teach, e.g. sequence=single sequence.task=timeclock"
            )
        return [str(sequence["task"])]
    if not tasks:
        raise ConfigError("sequence.tasks is empty; name at least one skill to teach")
    if "order" not in sequence:
        return tasks
    order = sequence["order"]
    if isinstance(order, int) and not isinstance(order, bool):
        return [tasks[position] for position in build_permutation(len(tasks), order)]
    if isinstance(order, Sequence) and not isinstance(order, str):
        return _apply_explicit_order(tasks, list(order))
    raise ConfigError(
        f"sequence.order={order} cannot be read; give a permutation index or a list of positions or names"
    )


def parse_name_list(key: str, value: Any) -> list[str]:
    """A list of names. Raises ConfigError for anything else: a single name would be taken apart into letters."""
    if value is None:
        return []
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{key}={value} must be a list: {key}=[{value}]")
    return [str(name) for name in value]


def build_permutation(num_items: int, index: int) -> list[int]:
    """The `index`-th permutation of 0..n-1 in lexicographic order (factorial number system).

    Raises ConfigError if `index` is not in 0..n!-1.
    """
    count = math.factorial(num_items)
    if not 0 <= index < count:
        raise ConfigError(f"sequence.order={index} is out of range; {num_items} tasks have the orders 0 to {count - 1}")
    remaining = list(range(num_items))
    permuted = []
    for size in range(num_items, 0, -1):
        position, index = divmod(index, math.factorial(size - 1))
        permuted.append(remaining.pop(position))
    return permuted


def _apply_explicit_order(tasks: list[str], order: list[Any]) -> list[str]:
    """An explicit order, of positions or of names; every task exactly once."""
    positions = [tasks.index(item) if isinstance(item, str) and item in tasks else item for item in order]
    if sorted(map(str, positions)) != sorted(map(str, range(len(tasks)))):
        raise ConfigError(
            f"sequence.order={order} must hold each of the {len(tasks)} tasks once, as positions 0 to {len(tasks) - 1} "
            f"or as names: {', '.join(tasks)}"
        )
    return [tasks[int(position)] for position in positions]
