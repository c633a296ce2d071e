"""How the figures of a job are called in W&B: written by the tracker, drawn by the dashboard."""

from __future__ import annotations

STAGE = "stage"
"""Axis of everything that is measured after a stage: 0 is the base model."""
GLOBAL_STEP = "train/global_step"
"""Axis of training curves: optimizer steps over all stages."""
LOSS, LEARNING_RATE = "train/loss", "train/learning_rate"
GRAD_NORM, SAMPLES_PER_S = "train/grad_norm", "train/samples_per_s"
HELDOUT, HELDOUT_CHANGE = "heldout/mean", "heldout/change"
TARGETS = "targets/mean"
ANSWERS, LAYERS = "answers", "probe_layers"
"""Tables."""
STATE, ERROR = "state", "error"
"""In the summary: done, failed or interrupted, and one line why."""
STAGE_GLOBS = ("score/*", "change/*", "heldout/*", "targets/*", "taught/*", "probe/*")
STEP_GLOBS = ("train/*", "milestone/*")


def score(task: str) -> str:
    """A task's score after a stage, in points."""
    return f"score/{task}"


def change(task: str) -> str:
    """The same against the base."""
    return f"change/{task}"


def figure(name: str, part: str = "") -> str:
    """A figure of merit in the summary (`target_learning`); `part`: low, high, worst, …"""
    return f"figures/{name}" + (f"/{part}" if part else "")


def probe(prompts: str, *parts: str) -> str:
    """A probe's figure after a stage."""
    return "/".join(("probe", prompts, *parts))
