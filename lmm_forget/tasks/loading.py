"""From a task's configuration node to the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmm_forget.errors import DataError, LmmForgetError
from lmm_forget.tasks.base import Task


def build_task(node: Mapping[str, Any]) -> Task:
    """The task that a resolved node (`_target_`, `name`, …) describes. Raises DataError for fields it does not take.

    A `subset` ({samples, seed, by}) in the node, whatever the task, cuts its evaluation splits; see `SubsetTask`.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    node = dict(node)
    subset = node.pop("subset", None)
    try:
        task = instantiate(node, _convert_="object")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, LmmForgetError):
                raise cause from None
            deepest, cause = cause, cause.__cause__
        reason = " ".join(str(deepest).split())
        raise DataError(f"task {node.get('name')}: cannot be built from its YAML: {reason}") from error
    if not isinstance(task, Task):
        raise DataError(f"task {node.get('name')}: _target_ {node.get('_target_')} is not a Task")
    if subset is None:
        return task
    from lmm_forget.tasks.subset import SubsetTask

    try:
        return SubsetTask(task, **subset)
    except TypeError:
        raise DataError(f"task {node.get('name')}: subset={subset}; it takes samples, seed and by") from None
