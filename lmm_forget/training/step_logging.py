"""The one line in which training meets whoever follows the job."""

from __future__ import annotations

from collections.abc import Mapping

from lmm_forget.tracking.tracker import Tracker


def log_training_metrics(tracker: Tracker | None, task: str, step: int, metrics: Mapping[str, float]) -> None:
    """Tell `logger`, if there is one, figures of optimizer step `step` (from 1) of the stage that teaches `task`."""
    if tracker is not None:
        tracker.log_step(task, step, metrics)
