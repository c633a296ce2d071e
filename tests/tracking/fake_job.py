"""Calls a tracker as a job does, without a model: two stages of a few steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lmm_forget.tracking import StageMetrics, Tracker
from lmm_forget.tracking.wandb_artifacts import make_thumbnail

STEPS = 23  # logged at 1, 11, 21 and 23
LOGGED = (1, 11, 21, 23)
TASKS = ("count", "clock")


@dataclass(frozen=True)
class FakeAnswer:
    sample_id: str
    question: str
    references: tuple[str, ...]
    text: str
    value: float


def make_config(folder: Path, **logger: Any) -> dict[str, Any]:
    return {
        "name": "sweep",
        "seed": 0,
        "model": {"name": "tiny_onevision"},
        "recipe": {"name": "sa_proj"},
        "sequence": {"name": "paper", "tasks": list(TASKS)},
        "suite": {"tasks": ["ai2d", "mmstar"]},
        "store": str(folder / "store"),
        "logger": {"name": "wandb", "mode": "offline", "timeout": 30, "answers": 2, **logger},
    }


def record(index: int) -> dict[str, Any]:
    return {
        "key": f"{index}" * 40,
        "weights_hash": f"weights{index}",
        "steps": STEPS,
        "loss": [3.0 - 0.1 * step for step in range(STEPS)],
    }


def make_stage_metrics(index: int, **more: Any) -> StageMetrics:
    """Held-out falls by 10 points a stage, the trained tasks rise; one of two samples changes."""
    answers = {
        task: [
            FakeAnswer("s1", "what?", ("yes", "y"), f"said {index}", float(index > 0)),
            FakeAnswer("s2", "?", ("no",), "no", 1.0),
        ]
        for task in (*TASKS, "ai2d", "mmstar")
    }
    scores = {
        "count": 20.0 * index,
        "clock": 5.0 * index,
        "ai2d": 90.0 - 10 * index,
        "mmstar": 80.0 - 10 * index,
    }
    extra: dict[str, Any] = {"task": TASKS[index - 1], "record": record(index), "seconds": {"train": 1.0}}
    pictures = {
        "count": {"s1": make_thumbnail([Image.new("RGB", (640, 480), "red")]), "s2": make_thumbnail([])},
        "ai2d": {"s1": None},
    }
    if index == 0:
        extra = {"pictures": pictures}
    told = {"weights_hash": f"weights{index}", "scores": scores, "answers": answers, **extra, **more}
    return StageMetrics(index, **told)


def log_training(tracker: Tracker, index: int, first: int = 1, last: int = STEPS) -> None:
    for step in range(first, last + 1):
        if step in LOGGED or (step - 1) % 10 == 0:
            figures = {
                "loss": 3.0 - 0.1 * (step - 1),
                "learning_rate": 1e-3,
                "grad_norm": 1.0,
                "samples_per_s": 9.0,
            }
            tracker.log_step(TASKS[index - 1], step, figures)


FIGURES = {
    "target_learning": {"value": 20.0, "low": 10.0, "high": 30.0},
    "target_forgetting": {"value": None, "low": None, "high": None},
    "heldout_forgetting": {
        "value": -20.0,
        "low": -22.0,
        "high": -18.0,
        "per_stage": [{"value": -10.0, "low": -11.0, "high": -9.0}],
        "worst": {"value": -20.0, "low": -22.0, "high": -18.0, "stage": 2},
    },
}
RESULTS = {"figures": FIGURES, "plan": {"trainable": 12, "rules": []}, "timings": {"total": 3.5}}


def log_job(tracker: Tracker) -> list[str]:
    """A job from end to end; returns the notices."""
    tracker.log_stage(make_stage_metrics(0))
    for index in (1, 2):
        log_training(tracker, index)
        tracker.log_stage(make_stage_metrics(index))
    tracker.log_results(RESULTS)
    return tracker.close()
