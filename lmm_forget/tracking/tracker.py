"""The interface between a job and its trackers, in plain data: a tracker needs no model and no model library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


class ScoredAnswer(Protocol):
    """One answer as a tracker needs it; `lmm_forget.evaluation.scored_answers.Answer` is one. `value` lies in 0..1."""

    @property
    def sample_id(self) -> str:
        """Id of the sample within its task."""

    @property
    def question(self) -> str:
        """The question as the model reads it."""

    @property
    def references(self) -> tuple[str, ...]:
        """The right answers."""

    @property
    def text(self) -> str:
        """The text that the model generated."""

    @property
    def value(self) -> float:
        """The strict score."""


@dataclass(frozen=True)
class StageMetrics:
    """What was measured after a stage; stage 0 is the base model, which has no `task` and no `record`.

    `scores` are points (0 to 100) by task, `answers` the answers that were scored. `record` is the stage's record in
    the store, `delta_path` the file with the tensors that it changed; `is_trained_here` is False for a stage that came
    from the store. `seconds` is the time that each part took in this job, `probes` the stage's entry of that name in
    results.json. The base's `pictures` hold the samples of each task that the tracker shows: a small image by sample
    id (None for a question without an image).
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
    """Logs one job: the base model, then for each stage its training steps and what was measured after it."""

    def log_step(self, task: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of optimizer step `step` (from 1) of the stage that trains `task`."""

    def log_stage(self, stage_metrics: StageMetrics) -> None:
        """Log what was measured after a stage; stages come in order, the base first, whether trained here or not.

        The base may come again: a job that found a damaged file starts over and logs every stage once more.
        """

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Log the content of results.json."""

    def close(self, error: BaseException | None = None) -> list[str]:
        """End the log of a job that failed with `error`, or succeeded (None); returns warnings, one line each."""


class NullTracker:
    """Logs nothing (`logger=none`)."""

    def log_step(self, task: str, step: int, metrics: Mapping[str, float]) -> None:
        """Ignore a step."""

    def log_stage(self, stage_metrics: StageMetrics) -> None:
        """Ignore a stage."""

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Ignore the results."""

    def close(self, error: BaseException | None = None) -> list[str]:
        """Do nothing; returns no warnings."""
        return []
