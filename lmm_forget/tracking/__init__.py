"""Following a job while it runs: CSV files in its folder, and a W&B run where `logger=wandb` asks for one."""

from lmm_forget.tracking.choosing import LOGGERS, open_tracker
from lmm_forget.tracking.tracker import Measured, Null, Tracker

__all__ = ["LOGGERS", "Measured", "Null", "Tracker", "open_tracker"]
