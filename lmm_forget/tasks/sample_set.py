"""The samples of one split: a sequence that builds each sample when it is read, and knows what it left out."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, overload

from lmm_forget.errors import DataError
from lmm_forget.tasks.task import Sample


class SampleSet(Sequence[Sample]):
    """Samples of one split, each built when it is read.

    A subclass has `__len__` and `read_sample`. The other methods have defaults that are right for samples that can be
    read in any order; a subclass overrides them where it can do the same with less work.
    """

    skipped: Mapping[str, str] = MappingProxyType({})
    """Location of every sample that was left out -> "id: reason"."""

    @abstractmethod
    def read_sample(self, index: int) -> Sample:
        """Sample number `index`, its images decoded. Raises DataError with its id where it cannot be used."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> SampleSet: ...
    def __getitem__(self, index: int | slice) -> Sample | SampleSet:
        if isinstance(index, slice):
            return self.select_samples(range(len(self))[index])
        return self.read_sample(index)

    @property
    def is_sequential(self) -> bool:
        """Whether samples can only be read one after the other, as from a stream; going back starts it over."""
        return False

    def read_stored_row(self, index: int) -> Any:
        """What `decode_sample` makes sample `index` of; of a stream only one reader can fetch it."""
        return self.read_sample(index)

    def decode_sample(self, stored_row: Any) -> Sample:
        """The sample of what `read_stored_row` gave, its images decoded. Raises DataError with its id."""
        sample: Sample = stored_row
        return sample

    def peek_sample(self, index: int) -> tuple[Sample, list[tuple[int, int]]]:
        """Sample `index`, possibly without its images, and their sizes (width, height)."""
        sample = self.read_sample(index)
        return sample, [image.size for image in sample.images]

    def iterate_without_images(self) -> Iterator[Sample | DataError]:
        """The samples in order, without their images; in place of one that cannot be read, the reason."""
        for index in range(len(self)):
            yield replace(self.read_sample(index), images=())

    def select_samples(self, positions: Sequence[int], unreadable: Mapping[int, str] | None = None) -> SampleSet:
        """The samples at `positions`; those at the positions `unreadable` (-> "id: reason") are noted in `skipped`."""
        return SampleSubset(self, positions, {str(position): reason for position, reason in (unreadable or {}).items()})


class ListSamples(SampleSet):
    """Samples that a task returned as a plain sequence, such as a list."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def read_sample(self, index: int) -> Sample:
        """Element `index` of the sequence."""
        return self.samples[index]


class SampleSubset(SampleSet):
    """The samples of a set at some positions, in the order of `positions`.

    `skipped` holds what `samples` left out, and `skip_reasons` beside it.
    """

    def __init__(
        self, samples: SampleSet, positions: Sequence[int], skip_reasons: Mapping[str, str] | None = None
    ) -> None:
        self.samples, self.positions = samples, positions
        self.skipped = {**samples.skipped, **(skip_reasons or {})}

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def is_sequential(self) -> bool:
        """See `SampleSet.is_sequential`."""
        return self.samples.is_sequential

    def read_sample(self, index: int) -> Sample:
        """See `SampleSet.read_sample`."""
        return self.samples.read_sample(self.positions[index])

    def read_stored_row(self, index: int) -> Any:
        """See `SampleSet.read_stored_row`."""
        return self.samples.read_stored_row(self.positions[index])

    def decode_sample(self, stored_row: Any) -> Sample:
        """See `SampleSet.decode_sample`."""
        return self.samples.decode_sample(stored_row)

    def peek_sample(self, index: int) -> tuple[Sample, list[tuple[int, int]]]:
        """See `SampleSet.peek_sample`."""
        return self.samples.peek_sample(self.positions[index])

    def iterate_without_images(self) -> Iterator[Sample | DataError]:
        """See `SampleSet.iterate_without_images`; `positions` must ascend."""
        selected = set(self.positions)
        return (sample for i, sample in enumerate(self.samples.iterate_without_images()) if i in selected)


def as_sample_set(samples: Sequence[Sample]) -> SampleSet:
    """`samples` itself if it is a SampleSet, else wrapped in one."""
    return samples if isinstance(samples, SampleSet) else ListSamples(samples)


def limit_samples(samples: Sequence[Sample], max_samples: int | None, task_name: str) -> SampleSet:
    """At most `max_samples` samples, chosen by a hash of `task_name` and position, in their order (None: all).

    Neither a sorted nor a periodic file biases the choice, and smaller limits nest in larger ones. Raises
    DataError unless `max_samples` is positive.
    """
    if max_samples is not None and max_samples < 1:
        raise DataError(
            f"task {task_name}: a limit of {max_samples} samples leaves nothing; give a positive number or null"
        )
    sample_set = as_sample_set(samples)
    if max_samples is None or max_samples >= len(sample_set):
        return sample_set
    ranked = sorted(range(len(sample_set)), key=lambda i: hashlib.sha256(f"{task_name}/{i}".encode()).digest())
    return SampleSubset(sample_set, sorted(ranked[:max_samples]))
