"""Training curves and stage metrics as two CSV files that are only appended to."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmm_forget.files import add_path_to_os_errors
from lmm_forget.tracking.probe_metrics import flatten_probe_readings
from lmm_forget.tracking.tracker import StageMetrics

STEP_METRICS = ("loss", "learning_rate", "grad_norm", "samples_per_s")
TRAINING_COLUMNS = ("task", "step", *STEP_METRICS, "stage")
STAGE_COLUMNS = ("stage", "metric", "value")


class CsvTracker:
    """Appends to two files in the job's folder, so that a stopped job loses nothing.

    `training.csv` has a row per logged optimizer step (columns `TRAINING_COLUMNS`), `stages.csv` a row per metric after
    each stage (columns `STAGE_COLUMNS`; stage 0 is the base model). A stage that runs again appends its rows again; the
    last row of a step or metric counts.
    """

    def __init__(self, folder: Path) -> None:
        """Write into `folder`, which is created with the first row."""
        self._folder = folder
        self._stage = 1

    def log_step(self, task: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append one training row."""
        row = {"task": task, "step": step, **metrics, "stage": self._stage}
        self._append_rows("training.csv", TRAINING_COLUMNS, [row])

    def log_stage(self, stage_metrics: StageMetrics) -> None:
        """Append one row per score and per probe metric of a stage."""
        self._stage = stage_metrics.index + 1
        metrics = {**stage_metrics.scores, **flatten_probe_readings(stage_metrics.probes)}
        rows = [{"stage": stage_metrics.index, "metric": name, "value": value} for name, value in metrics.items()]
        self._append_rows("stages.csv", STAGE_COLUMNS, rows)

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Do nothing: results.json lies beside the CSV files."""

    def close(self, error: BaseException | None = None) -> list[str]:
        """Do nothing, because every row is on disk already; returns no warnings."""
        return []

    def read_logged_steps(self, stage: int, task: str) -> dict[int, dict[str, float]]:
        """Metrics by step of a stage, from this and earlier starts of the job; the last row of a step counts."""
        try:
            with open(self._folder / "training.csv", newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except FileNotFoundError:
            return {}
        metrics_by_step: dict[int, dict[str, float]] = {}
        for row in rows:
            if (row.get("stage"), row.get("task")) == (str(stage), task):
                try:
                    metrics_by_step[int(row["step"])] = {
                        name: float(row[name]) for name in STEP_METRICS if row.get(name)
                    }
                except (TypeError, ValueError):  # a full disk or a power cut left half a line
                    continue
        return metrics_by_step

    def _append_rows(self, name: str, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / name
        with add_path_to_os_errors(path), open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)
