"""Names of a job's metrics in W&B: the tracker writes them, the dashboard draws them."""

from __future__ import annotations

STAGE_AXIS = "stage"
"""Axis of everything that is measured after a stage; 0 is the base model."""
GLOBAL_STEP_AXIS = "train/global_step"
"""Axis of training curves: optimizer steps, counted over all stages."""
LOSS, LEARNING_RATE = "train/loss", "train/learning_rate"
GRAD_NORM, SAMPLES_PER_S = "train/grad_norm", "train/samples_per_s"
HELDOUT_MEAN, HELDOUT_CHANGE = "heldout/mean", "heldout/change"
TARGETS_MEAN = "targets/mean"
STAGE_LEARNING, STAGE_TASK = "stage/learning", "stage/task"
"""Of the task that a stage trained: its change since the base in points, and its name."""
STAGE_LOSS, STAGE_STEPS = "stage/loss", "stage/steps"
"""Of a stage: its last training loss, and its number of optimizer steps."""
ANSWERS_TABLE, LAYERS_TABLE = "answers", "probe_layers"
"""Names of tables."""
STATE_FIELD, ERROR_FIELD = "state", "error"
"""Fields of the run's summary: done, failed or interrupted; and the error in one line."""
STAGE_GLOBS = ("score/*", "change/*", "heldout/*", "targets/*", "stage/*", "probe/*")
STEP_GLOBS = ("train/*", "milestone/*")


def format_score_metric_name(task: str) -> str:
    """Name of a task's score after a stage, in points."""
    return f"score/{task}"


def format_change_metric_name(task: str) -> str:
    """Name of a task's change since the base, in points."""
    return f"change/{task}"


def format_figure_metric_name(name: str, part: str = "") -> str:
    """Name of a figure of merit (target_learning, …) in the summary; `part`: low, high, worst, …"""
    return f"figures/{name}" + (f"/{part}" if part else "")


def format_probe_metric_name(prompts: str, *parts: str) -> str:
    """Name of a probe's metric after a stage; `parts` follow the name of the prompts."""
    return "/".join(("probe", prompts, *parts))
