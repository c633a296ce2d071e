"""What a stage's training is given beside model and samples, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import lightning.pytorch as pl

from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lmm_forget.progress import NullProgress, Progress
from lmm_forget.tracking.tracker import Tracker
from lmm_forget.training.train_state import ResumeConfig


class StepProbe(Protocol):
    """Examines the stage model between two optimizer steps (milestones, drift alarm)."""

    def is_due(self, step: int) -> bool:
        """Whether it is to be called after `step` finished steps; the same on every rank."""

    def __call__(self, step: int) -> bool:
        """Examine the model after `step` finished steps; True ends the stage."""


@dataclass(frozen=True)
class TrainStageConfig:
    """One stage's training: its settings, where it can be resumed from, and who follows it."""

    task: str
    seed: int
    training_config: Mapping[str, Any]
    """The resolved `training` node: optimizer, schedule, global batch."""
    hardware_config: Mapping[str, Any]
    """The resolved `hardware` node: accelerator, precision, micro-batch, strategy."""
    callbacks_config: Mapping[str, Any] | None = None
    """The `callbacks` node; None: conf/callbacks/default.yaml."""
    extra_callbacks: Sequence[pl.Callback] = ()
    """Callbacks as objects, called after those of `callbacks_config`."""
    process_group: ProcessGroup = SINGLE_PROCESS
    resume_config: ResumeConfig | None = None
    """Where training states are saved and looked for; None: nowhere."""
    step_probe: StepProbe | None = None
    progress: Progress = field(default_factory=NullProgress)
    tracker: Tracker | None = None
    phase_name: str | None = None
    """What progress shows; None: "train <task>"."""


@dataclass(frozen=True)
class FitResult:
    """What a stage's training did: optimizer steps, loss of each, peak learning rate, samples per forward pass and
    in all.

    `dropped_per_epoch` counts samples left out of each epoch as an incomplete global batch; `seconds` is wall-clock
    time of this process. `resumed_from_step` is the step of the saved state it went on from (None: trained in one go),
    `is_exact` whether that gave the same bytes as training in one go (same threads, devices, torch, processor).
    `stopped_after_step` is the number of steps after which a callback ended the stage, None if it went to its end.
    """

    num_steps: int
    step_losses: list[float]
    learning_rate: float
    micro_batch_size: int
    num_samples: int
    dropped_per_epoch: int
    seconds: float
    resumed_from_step: int | None = None
    is_exact: bool = True
    stopped_after_step: int | None = None
