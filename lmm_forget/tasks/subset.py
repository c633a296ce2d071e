"""A fixed part of a task's evaluation split: the same questions for every model, every group with its share."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.tasks.bad_samples import require_policy, settle
from lmm_forget.tasks.base import Sample, SharedPictures, Task, digest
from lmm_forget.tasks.published import HubSamples, HubTask
from lmm_forget.tasks.values import group_of


class SubsetTask(Task):
    """Another task whose test and validation splits are cut down to `samples` questions.

    The questions are chosen by a hash of `seed`, the task's name and their ids, in equal shares of every group of
    the meta column `by` (None: no groups): a larger part holds every smaller one, and the order of the data set
    plays no role. Training is left whole.
    """

    def __init__(self, task: Task, *, samples: int, seed: int = 0, by: str | None = None) -> None:
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ConfigError(
                f"task {task.name}: subset.samples={samples} must be a whole number of at least 1"
            )
        super().__init__(
            name=task.name,
            role=task.role,
            max_new_tokens=task.max_new_tokens,
            scorer=task.scorer,
            train_prompt=task.train_prompt,
            macro=task.macro,
        )
        self.task, self.size, self.seed, self.by = task, samples, seed, by
        self._chosen: dict[str, _Choice] = {}

    def samples(self, split: str) -> Sequence[Sample]:
        """The chosen samples of test or validation, in the data set's order; all of train.

        Raises DataError if a sample of the whole split cannot be read.
        """
        part = self.task.samples(split)
        if split != "train" and len(part) > self.size:
            unread = {str(place): reason for place, reason in self._choice(split).unread.items()}
            settle(unread, len(part), "fail", task=self.name, what=f"{split} samples")
        return self._cut_down(part, split)

    def readable(self, split: str) -> Sequence[Sample]:
        """See `Task.readable`."""
        return self._cut_down(self.task.readable(split), split)

    def _cut_down(self, part: Sequence[Sample], split: str) -> Sequence[Sample]:
        if split == "train" or len(part) <= self.size:
            return part
        choice = self._choice(split)
        return picked(part, choice.places, choice.unread)

    def fingerprint(self, split: str) -> str:
        """The task's own, and which part of it is asked."""
        whole = self.task.fingerprint(split)
        return whole if split == "train" else digest("subset", whole, self.size, self.seed, self.by)

    def check(self, split: str, on_bad_sample: str = "fail") -> Sequence[Sample]:
        """As the task itself; only the chosen samples are opened where it can do so."""
        if split == "train":
            return self.task.check(split, on_bad_sample)
        require_policy(on_bad_sample)
        part = self.readable(split)
        if isinstance(self.task, HubTask) and isinstance(part, HubSamples):
            return self.task.usable(part, split, on_bad_sample)
        usable = self.task.check(split, on_bad_sample)
        ids = {sample.id for sample in without_pictures(part) if isinstance(sample, Sample)}
        kept = enumerate(without_pictures(usable))
        return picked(usable, [i for i, one in kept if isinstance(one, Sample) and one.id in ids])

    def question(self, sample: Sample, *, training: bool) -> str:
        """As the task itself."""
        return self.task.question(sample, training=training)

    def target(self, sample: Sample) -> str:
        """As the task itself."""
        return self.task.target(sample)

    def score(self, answer: str, sample: Sample) -> dict[str, float | None]:
        """As the task itself."""
        return self.task.score(answer, sample)

    def content(self, splits: Sequence[str]) -> str | None:
        """As the task itself."""
        return self.task.content(splits)

    def shared_pictures(self) -> SharedPictures:
        """As the task itself."""
        return self.task.shared_pictures()

    def provenance(self) -> dict[str, str]:
        """As the task itself."""
        return self.task.provenance()

    def _choice(self, split: str) -> _Choice:
        if split not in self._chosen:
            self._chosen[split] = self._choose(split)
        return self._chosen[split]

    def _choose(self, split: str) -> _Choice:
        groups: defaultdict[str, list[tuple[bytes, int]]] = defaultdict(list)
        unread: dict[int, str] = {}
        for place, sample in enumerate(without_pictures(self.task.readable(split))):
            if isinstance(sample, DataError):
                unread[place] = str(sample).removeprefix("sample ")
                continue
            if self.by is not None and self.by not in sample.meta:
                have = ", ".join(sample.meta) or "nothing"
                raise DataError(f"task {self.name}: subset.by={self.by} is not in meta, which has {have}")
            group = "" if self.by is None else group_of(sample.meta[self.by])
            mark = hashlib.sha256(f"{self.seed}/{self.name}/{sample.id}".encode()).digest()
            groups[group].append((mark, place))
        # Places of a group, in its own random order, stand at equal distances on a line from 0 to 1: its first part
        # holds the same share of every group, whatever its length.
        line = [
            ((rank + 0.5) / len(members), mark, place)
            for members in groups.values()
            for rank, (mark, place) in enumerate(sorted(members))
        ]
        return _Choice(sorted(place for _, _, place in sorted(line)[: self.size]), unread)


@dataclass(frozen=True)
class _Choice:
    """The places of a split that are asked, and those that cannot be read, with the reason."""

    places: list[int]
    unread: dict[int, str]


class Picked(Sequence[Sample]):
    """The samples at some places of a sequence, produced when they are read."""

    def __init__(self, part: Sequence[Sample], places: Sequence[int]) -> None:
        self.part, self.places = part, places
        self.skipped = dict(getattr(part, "skipped", {}))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Picked(self.part, self.places[index])
        return self.part[self.places[index]]

    def bare(self) -> Iterable[Sample | DataError]:
        """The samples without their pictures."""
        wanted = set(self.places)
        return (sample for place, sample in enumerate(without_pictures(self.part)) if place in wanted)


def picked(
    part: Sequence[Sample], places: Sequence[int], unread: Mapping[int, str] | None = None
) -> Sequence[Sample]:
    """The samples at `places` of a split, of which those at `unread` cannot be read."""
    return part.picked(places, unread) if isinstance(part, HubSamples) else Picked(part, places)


def without_pictures(part: Sequence[Sample]) -> Iterable[Sample | DataError]:
    """The samples in order, without their pictures where that is cheaper; in place of one, why it cannot be read."""
    bare = getattr(part, "bare", None)
    return bare() if bare is not None else iter(part)
