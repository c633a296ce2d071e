"""What a job tells whoever follows it, in plain data: no model, no library that wants to be told differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


class ScoredAnswer(Protocol):
    """One answer as a follower needs it; `lmm_forget.evaluation.scored_answers.Answer` is one. `value` lies in 0..1."""

    @property
    def sample_id(self) -> str:
        """Which sample of its task."""

    @property
    def question(self) -> str:
        """What was asked."""

    @property
    def references(self) -> tuple[str, ...]:
        """What counts as right."""

    @property
    def text(self) -> str:
        """What the model said."""

    @property
    def value(self) -> float:
        """The strict score."""


@dataclass(frozen=True)
class StageMetrics:
    """What was measured after a stage; stage 0 is the base model, which has no `task` and no `record`.

    `scores` are points (0 to 100) by task, `answers` the answers behind them, `record` the stage's record and
    `delta` the file with the tensors it moved, `trained` whether this job trained it now. `seconds` says how long
    each part took in this job, `probes` is the stage's entry of that name in results.json. The base's `pictures`
    name the samples of each task that people are shown, with a small picture each (None for a question without one).
    """

    index: int
    weights_hash: str
    scores: Mapping[str, float]
    answers: Mapping[str, Sequence[ScoredAnswer]] = field(default_factory=dict)
    task: str | None = None
    record: Mapping[str, Any] | None = None
    delta_path: Path | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    is_trained_here: bool = False
    probes: Mapping[str, Any] | None = None
    pictures: Mapping[str, Mapping[str, Image | None]] = field(default_factory=dict)


class Tracker(Protocol):
    """Follows one job: training steps of a stage, then what was measured after it, then the next stage."""

    def log_step(self, task: str, step: int, metrics: Mapping[str, float]) -> None:
        """Figures of optimizer step `step` (from 1) of the stage that teaches `task`."""

    def log_stage(self, stage_metrics: StageMetrics) -> None:
        """What was measured after a stage; stages come in order, the base first, whoever trained them.

        The base may come again: the job found something damaged and tells everything once more.
        """

    def log_results(self, results: Mapping[str, Any]) -> None:
        """The content of results.json."""

    def close(self, error: BaseException | None = None) -> list[str]:
        """The job ended, with `error` or well; returns what people should know, one line each."""


class NullTracker:
    """Follows nothing (`logger=none`)."""

    def log_step(self, task: str, step: int, metrics: Mapping[str, float]) -> None:
        """Ignore a step."""

    def log_stage(self, stage_metrics: StageMetrics) -> None:
        """Ignore a stage."""

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Ignore the results."""

    def close(self, error: BaseException | None = None) -> list[str]:
        """Nothing to say."""
        return []
