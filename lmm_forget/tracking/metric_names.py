"""How the figures of a job are called in W&B: written by the tracker, drawn by the dashboard."""

from __future__ import annotations

STAGE_AXIS = "stage"
"""Axis of everything that is measured after a stage: 0 is the base model."""
GLOBAL_STEP_AXIS = "train/global_step"
"""Axis of training curves: optimizer steps over all stages."""
LOSS, LEARNING_RATE = "train/loss", "train/learning_rate"
GRAD_NORM, SAMPLES_PER_S = "train/grad_norm", "train/samples_per_s"
HELDOUT_MEAN, HELDOUT_CHANGE = "heldout/mean", "heldout/change"
TARGETS_MEAN = "targets/mean"
ANSWERS_TABLE, LAYERS_TABLE = "answers", "probe_layers"
"""Tables."""
STATE_FIELD, ERROR_FIELD = "state", "error"
"""In the summary: done, failed or interrupted, and one line why."""
STAGE_GLOBS = ("score/*", "change/*", "heldout/*", "targets/*", "taught/*", "probe/*")
STEP_GLOBS = ("train/*", "milestone/*")


def format_score_metric_name(task: str) -> str:
    """A task's score after a stage, in points."""
    return f"score/{task}"


def format_change_metric_name(task: str) -> str:
    """The same against the base."""
    return f"change/{task}"


def format_figure_metric_name(name: str, part: str = "") -> str:
    """A figure of merit in the summary (`target_learning`); `part`: low, high, worst, …"""
    return f"figures/{name}" + (f"/{part}" if part else "")


def format_probe_metric_name(prompts: str, *parts: str) -> str:
    """A probe's figure after a stage."""
    return "/".join(("probe", prompts, *parts))
