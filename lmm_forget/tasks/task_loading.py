"""Build a task from its configuration node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmm_forget.config.instantiation import instantiate_config
from lmm_forget.errors import DataError
from lmm_forget.tasks.subset import SubsetTask
from lmm_forget.tasks.task import Task


def build_task(node: Mapping[str, Any]) -> Task:
    """Build the task that a resolved node (`_target_`, `name`, …) describes. Raises DataError for unknown fields.

    A `subset` ({samples, seed, by}) in the node of any task reduces its evaluation splits; see `SubsetTask`.
    """
    node = dict(node)
    subset = node.pop("subset", None)
    task = instantiate_config(node, Task, f"task {node.get('name')}", DataError, convert_mode="object")  # type: ignore[type-abstract]
    if subset is None:
        return task
    try:
        return SubsetTask(task, **subset)
    except TypeError:
        raise DataError(f"task {node.get('name')}: subset={subset}; it takes samples, seed and by") from None
