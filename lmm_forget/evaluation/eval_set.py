"""What is evaluated of one task: its samples, the batches of its questions and their keys in the response cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmm_forget.errors import ConfigError
from lmm_forget.evaluation.question_encoding import index_questions
from lmm_forget.models.loading import LMM
from lmm_forget.store import CachedResponse
from lmm_forget.tasks.sample_set import SampleSet, as_sample_set, limit_samples
from lmm_forget.tasks.task import Sample, Task


class EvalSet:
    """One task with the samples it is evaluated on and, once prepared, its batches and the keys of its questions.

    batches                 positions of the samples, batch by batch
    keys                    [n] key of every sample's question in the response cache
    samples_without_images  [n] all that scoring needs
    """

    def __init__(self, task: Task, samples: Sequence[Sample], split: str = "test") -> None:
        self.task, self.split = task, split
        self.samples: SampleSet = as_sample_set(samples)
        self.batches: list[list[int]] = []
        self.keys: list[str] = []
        self.samples_without_images: list[Sample] = []

    @classmethod
    def from_task(cls, task: Task, split: str, max_samples: int | None, on_bad_sample: str) -> EvalSet:
        """Read a split, treat bad samples as `on_bad_sample` says, keep at most `max_samples`. Raises DataError."""
        return cls(task, limit_samples(task.validate_split(split, on_bad_sample), max_samples, task.name), split)

    def prepare_batches(self, lmm: LMM, batch_size: int, num_workers: int = 0) -> None:
        """Fix the batches and read every question once; later models are asked the same ones in the same batches."""
        if not self.batches and len(self.samples):
            self.batches, self.keys, self.samples_without_images = index_questions(
                lmm, self.task, self.samples, batch_size, num_workers
            )

    def count_missing(self, cached_responses: Mapping[str, CachedResponse]) -> int:
        """How many questions have no response yet."""
        return sum(key not in cached_responses for key in self.keys)

    def select_missing_batches(self, cached_responses: Mapping[str, CachedResponse]) -> list[list[int]]:
        """The batches without the questions that have a response, or whose equal is in an earlier batch."""
        known_keys, missing_batches = set(cached_responses), []
        for batch in self.batches:
            positions = [i for i in batch if self.keys[i] not in known_keys]
            known_keys.update(self.keys[i] for i in positions)
            if positions:
                missing_batches.append(positions)
        return missing_batches


def require_compat_scores(eval_sets: Sequence[EvalSet]) -> None:
    """Raise ConfigError for tasks whose scorer follows no public code, so that they have no compat score."""
    tasks_without_compat = [each.task.name for each in eval_sets if getattr(each.task.scorer, "compat", None) is None]
    if tasks_without_compat:
        raise ConfigError(
            f"data.scoring=compat: there is no compat score of {', '.join(tasks_without_compat)}; name a rule "
            "in the task's "
            "scorer (compat: paper.mmstar and the like) or use data.scoring=strict"
        )
