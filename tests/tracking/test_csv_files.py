"""CSV files that only grow, and what W&B's tracker finds in them again."""

from __future__ import annotations

import csv
from pathlib import Path

from lmm_forget.tracking import NullTracker, StageMetrics, open_tracker
from lmm_forget.tracking.csv_tracker import CsvTracker
from tests.tracking.fake_job import log_job, make_config, make_stage_metrics
from tests.training.lesson import teach


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_training_rows_of_every_stage_and_its_figures(tmp_path: Path) -> None:
    tracker = open_tracker(make_config(tmp_path, name="csv"), tmp_path)
    tracker.log_stage(StageMetrics(0, "w", {"scores/count": 0.0}))
    teach(training={"max_steps": 12}, tracker=tracker, task="first")
    tracker.log_stage(make_stage_metrics(1, scores={"count": 50.0, "clock": 2.5}))
    teach(training={"max_steps": 1}, tracker=tracker, task="second")
    assert tracker.close() == []
    found = rows(tmp_path / "training.csv")
    assert [(r["stage"], r["task"], r["step"]) for r in found] == [
        ("1", "first", "1"),
        ("1", "first", "11"),
        ("1", "first", "12"),
        ("2", "second", "1"),
    ]
    figures = ("loss", "learning_rate", "grad_norm", "samples_per_s")
    assert all(float(r[c]) > 0 for r in found for c in figures)
    assert rows(tmp_path / "stages.csv")[1:] == [
        {"stage": "1", "metric": "count", "value": "50.0"},
        {"stage": "1", "metric": "clock", "value": "2.5"},
    ]


def test_the_last_row_of_a_step_counts_and_broken_lines_do_not(tmp_path: Path) -> None:
    files = CsvTracker(tmp_path)
    assert files.read_logged_steps(1, "a") == {}
    files.log_step("a", 1, {"loss": 3.0, "grad_norm": 1.0})
    files.log_step("a", 11, {"loss": 2.0})
    files.log_step("a", 11, {"loss": 1.5})
    files.log_step("b", 21, {"loss": 9.0})
    with open(tmp_path / "training.csv", "a", encoding="utf-8") as file:
        file.write("a,31,0.")  # what a full disk leaves
    assert files.read_logged_steps(1, "a") == {1: {"loss": 3.0, "grad_norm": 1.0}, 11: {"loss": 1.5}}
    assert files.read_logged_steps(2, "a") == {}


def test_no_tracker_leaves_nothing(tmp_path: Path) -> None:
    tracker = open_tracker(make_config(tmp_path, name="none"), tmp_path / "job")
    assert isinstance(tracker, NullTracker)
    assert log_job(tracker) == []
    assert not (tmp_path / "job").exists()
