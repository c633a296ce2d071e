"""Lightning's logger for callbacks that want one: keeps what they log until the next row of the training curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger


class TrackerLogger(Logger):
    """Collects metrics that callbacks log through Lightning; `StepLogging` hands them to the job's tracker.

    Of a metric that is logged several times between two rows the last value counts. Steps are optimizer steps,
    whatever a callback calls them. Nothing is written to a folder.
    """

    def __init__(self) -> None:
        super().__init__()
        self._metrics: dict[str, float] = {}

    @property
    def name(self) -> str:
        """What Lightning calls this logger."""
        return "tracker"

    @property
    def version(self) -> str:
        """Loggers have versions; this one has none."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep `metrics` for the next row."""
        self._metrics.update({name: float(value) for name, value in metrics.items() if name != "epoch"})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the record holds the whole configuration."""

    def take_metrics(self) -> dict[str, float]:
        """What came since the last call."""
        metrics, self._metrics = self._metrics, {}
        return metrics
