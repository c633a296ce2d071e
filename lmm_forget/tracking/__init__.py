"""Trackers log a job while it runs: CSV files in its folder, and a W&B run with `logger=wandb`."""

from lmm_forget.tracking.factory import LOGGER_NAMES, open_tracker
from lmm_forget.tracking.tracker import NullTracker, StageMetrics, Tracker

__all__ = ["LOGGER_NAMES", "StageMetrics", "NullTracker", "Tracker", "open_tracker"]
