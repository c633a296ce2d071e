"""A fixed part of a task's evaluation split: the same questions for every model, every group with its share."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.tasks.bad_samples import apply_bad_sample_policy, validate_policy
from lmm_forget.tasks.hub import HubTask
from lmm_forget.tasks.hub_samples import HubSamples
from lmm_forget.tasks.sample_set import SampleSet, as_sample_set
from lmm_forget.tasks.task import Sample, SplitOverlap, Task, hash_json_parts
from lmm_forget.tasks.text_values import get_group_name


class SubsetTask(Task):
    """Another task whose test and validation splits are cut down to `samples` questions.

    The questions are chosen by a hash of `seed`, the task's name and their ids, in equal shares of every group of
    the meta column `by` (None: no groups): a larger part holds every smaller one, and the order of the data set
    plays no role. Training is left whole.
    """

    def __init__(self, task: Task, *, samples: int, seed: int = 0, by: str | None = None) -> None:
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ConfigError(f"task {task.name}: subset.samples={samples} must be a whole number of at least 1")
        super().__init__(
            name=task.name,
            role=task.role,
            max_new_tokens=task.max_new_tokens,
            scorer=task.scorer,
            train_prompt=task.train_prompt,
            macro=task.macro,
        )
        self.task, self.size, self.seed, self.by = task, samples, seed, by
        self._selections: dict[str, _SubsetSelection] = {}

    def load_samples(self, split: str) -> SampleSet:
        """The chosen samples of test or validation, in the data set's order; all of train.

        Raises DataError if a sample of the whole split cannot be read.
        """
        samples = as_sample_set(self.task.load_samples(split))
        if split != "train" and len(samples) > self.size:
            unreadable = {str(place): reason for place, reason in self._get_selection(split).unreadable.items()}
            apply_bad_sample_policy(unreadable, len(samples), "fail", task_name=self.name, noun=f"{split} samples")
        return self._select_subset(samples, split)

    def load_readable_samples(self, split: str) -> SampleSet:
        """See `Task.readable`."""
        return self._select_subset(as_sample_set(self.task.load_readable_samples(split)), split)

    def _select_subset(self, samples: SampleSet, split: str) -> SampleSet:
        if split == "train" or len(samples) <= self.size:
            return samples
        selection = self._get_selection(split)
        return samples.select_samples(selection.positions, selection.unreadable)

    def fingerprint_split(self, split: str) -> str:
        """The task's own, and which part of it is asked."""
        task_fingerprint = self.task.fingerprint_split(split)
        return (
            task_fingerprint
            if split == "train"
            else hash_json_parts("subset", task_fingerprint, self.size, self.seed, self.by)
        )

    def validate_split(self, split: str, on_bad_sample: str = "fail") -> SampleSet:
        """As the task itself; only the chosen samples are opened where it can do so."""
        if split == "train":
            return as_sample_set(self.task.validate_split(split, on_bad_sample))
        validate_policy(on_bad_sample)
        samples = self.load_readable_samples(split)
        if isinstance(self.task, HubTask) and isinstance(samples, HubSamples):
            return self.task.filter_usable_samples(samples, split, on_bad_sample)
        usable = as_sample_set(self.task.validate_split(split, on_bad_sample))
        ids = {sample.id for sample in samples.iterate_without_images() if isinstance(sample, Sample)}
        numbered = enumerate(usable.iterate_without_images())
        return usable.select_samples([i for i, one in numbered if isinstance(one, Sample) and one.id in ids])

    def format_question(self, sample: Sample, *, for_training: bool) -> str:
        """As the task itself."""
        return self.task.format_question(sample, for_training=for_training)

    def get_target_answer(self, sample: Sample) -> str:
        """As the task itself."""
        return self.task.get_target_answer(sample)

    def score_answer(self, answer: str, sample: Sample) -> dict[str, float | None]:
        """As the task itself."""
        return self.task.score_answer(answer, sample)

    def hash_data(self, splits: Sequence[str]) -> str | None:
        """As the task itself."""
        return self.task.hash_data(splits)

    def find_split_overlap(self) -> SplitOverlap:
        """As the task itself."""
        return self.task.find_split_overlap()

    def get_provenance(self) -> dict[str, str]:
        """As the task itself."""
        return self.task.get_provenance()

    def _get_selection(self, split: str) -> _SubsetSelection:
        if split not in self._selections:
            self._selections[split] = self._draw_selection(split)
        return self._selections[split]

    def _draw_selection(self, split: str) -> _SubsetSelection:
        groups: defaultdict[str, list[tuple[bytes, int]]] = defaultdict(list)
        unreadable: dict[int, str] = {}
        samples = as_sample_set(self.task.load_readable_samples(split))
        for position, sample in enumerate(samples.iterate_without_images()):
            if isinstance(sample, DataError):
                unreadable[position] = str(sample).removeprefix("sample ")
                continue
            if self.by is not None and self.by not in sample.meta:
                available = ", ".join(sample.meta) or "nothing"
                raise DataError(f"task {self.name}: subset.by={self.by} is not in meta, which has {available}")
            group = "" if self.by is None else get_group_name(sample.meta[self.by])
            rank_hash = hashlib.sha256(f"{self.seed}/{self.name}/{sample.id}".encode()).digest()
            groups[group].append((rank_hash, position))
        # Places of a group, in its own random order, stand at equal distances on a line from 0 to 1: its first part
        # holds the same share of every group, whatever its length.
        ranked = [
            ((rank + 0.5) / len(members), mark, place)
            for members in groups.values()
            for rank, (mark, place) in enumerate(sorted(members))
        ]
        return _SubsetSelection(sorted(place for _, _, place in sorted(ranked)[: self.size]), unreadable)


@dataclass(frozen=True)
class _SubsetSelection:
    """The places of a split that are asked, and those that cannot be read, with the reason."""

    positions: list[int]
    unreadable: dict[int, str]
