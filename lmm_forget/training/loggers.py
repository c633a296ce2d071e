"""The one line in which training meets whoever follows the job."""

from __future__ import annotations

from collections.abc import Mapping

from lmm_forget.tracking.tracker import Tracker


def log_training(logger: Tracker | None, task: str, step: int, figures: Mapping[str, float]) -> None:
    """Tell `logger`, if there is one, figures of optimizer step `step` (from 1) of the stage that teaches `task`."""
    if logger is not None:
        logger.training(task, step, figures)
