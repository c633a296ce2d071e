"""A task's samples as training sees them: the question as it is taught, and the answer to learn."""

from __future__ import annotations

from collections.abc import Sequence

from lmm_forget.tasks.base import Sample, Task
from lmm_forget.training.batches import TrainItem


class Lessons(Sequence[TrainItem]):
    """The samples of a task's train split as training items, produced when they are read."""

    def __init__(self, task: Task, samples: Sequence[Sample]) -> None:
        self.task, self.samples = task, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> TrainItem:  # type: ignore[override]
        sample = self.samples[index]
        question, answer = self.task.question(sample, training=True), self.task.target(sample)
        return TrainItem(sample.id, question, sample.images, answer, sample.system)
