"""A task's samples as training sees them: the question as it is taught, and the answer to learn."""

from __future__ import annotations

from collections.abc import Sequence

from lmm_forget.tasks.sample_set import SampleSet, as_sample_set
from lmm_forget.tasks.task import Sample, Task
from lmm_forget.training.micro_batches import TrainItem


class TrainSet(Sequence[TrainItem]):
    """The samples of a task's train split as training items, produced when they are read."""

    def __init__(self, task: Task, samples: Sequence[Sample]) -> None:
        self.task = task
        self.samples: SampleSet = as_sample_set(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> TrainItem:  # type: ignore[override]
        sample = self.samples[index]
        question, answer = (
            self.task.format_question(sample, for_training=True),
            self.task.get_target_answer(sample),
        )
        return TrainItem(sample.id, question, sample.images, answer, sample.system)
