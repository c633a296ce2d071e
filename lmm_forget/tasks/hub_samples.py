"""The samples of one split of a published data set: read, decoded and checked row by row, or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from lmm_forget.errors import DataError
from lmm_forget.tasks.dataset_source import DatasetSplit
from lmm_forget.tasks.image_clusters import merge_image_ids
from lmm_forget.tasks.images import hash_pixels
from lmm_forget.tasks.row_reader import RowReader
from lmm_forget.tasks.sample_set import SampleSet
from lmm_forget.tasks.task import Sample

SCAN_CHUNK_SIZE = 64
"""Rows whose images are opened at a time when a split is checked."""


class RowTask(Protocol):
    """What samples need of their task: how a row of the data set becomes a sample. See `HubTask`."""

    name: str
    fields: dict[str, str]
    where: dict[str, Any]
    images_root: Path | None

    def build_sample(self, row: Mapping[str, Any], split: str, row_number: int, *, with_images: bool = True) -> Sample:
        """The sample of a row."""

    def build_sample_id(self, row: Mapping[str, Any], split: str, row_number: int) -> str:
        """The id of a row."""

    def list_columns(self, *, with_images: bool = True) -> tuple[str, ...]:
        """The columns that the task reads."""

    def get_target_answer(self, sample: Sample) -> str:
        """The answer that training uses as the label."""


@dataclass(frozen=True)
class SampleInspection:
    """What opening a sample showed: its id, the image id of its row alone, and digests of its pictures' pixels."""

    id: str
    image_id: str
    pixel_hashes: tuple[str, ...]


class HubSamples(SampleSet):
    """Samples of one split; a picture is opened when its sample is read.

    `rows` are the rows of the table that belong to it (None: all that `where` keeps); `skipped` maps a row's number
    to "id: reason" for what `HubTask.validate_split` left out. A streamed split keeps its place: reading on is
    cheap, reading an earlier sample starts over.
    """

    def __init__(
        self,
        task: RowTask,
        dataset_split: DatasetSplit,
        split: str,
        row_numbers: Sequence[int] | None = None,
        *,
        is_cut: bool = False,
    ) -> None:
        self.task, self.table, self.split, self.cut = task, dataset_split, split, is_cut
        self.rows = select_row_numbers(task, dataset_split) if row_numbers is None else row_numbers
        self.skipped: dict[str, str] = {}
        self.inspections: dict[int, SampleInspection] = {}
        self.image_ids: dict[int, str] = {}
        self._stream: Iterator[tuple[int, dict[str, Any]]] | None = None
        self._next = 0
        if not len(self.rows):
            reason = f"has no rows where {task.where}" if task.where else "is empty"
            raise DataError(f"task {task.name}: {dataset_split.source.display_name} ({dataset_split.split}) {reason}")

    def __len__(self) -> int:
        return len(self.rows)

    def read_sample(self, index: int) -> Sample:
        """See `SampleSet.read_sample`."""
        return self.decode_sample(self.read_stored_row(index))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None, "_next": 0}  # a worker process opens its own stream

    @property
    def is_sequential(self) -> bool:
        """Whether samples can only be read one after the other."""
        return self.table.is_streamed

    def read_stored_row(self, index: int) -> tuple[int, dict[str, Any]]:
        """A sample's row as it is stored: all that `made` needs, wherever that is done."""
        row_number = self.rows[index]
        return row_number, self._read_row(row_number)

    def decode_sample(self, stored_row: tuple[int, dict[str, Any]]) -> Sample:
        """The sample of what `stored` gave, its pictures decoded. Raises DataError with its id."""
        row_number, row = stored_row
        sample = self.task.build_sample(row, self.split, row_number)
        return replace(sample, image_id=self.image_ids.get(row_number, sample.image_id))

    def peek_sample(self, index: int) -> tuple[Sample, list[tuple[int, int]]]:
        """A sample without its pictures, and their sizes (upright), which are not decoded."""
        row_number, row = self.read_stored_row(index)
        sample = self.task.build_sample(row, self.split, row_number, with_images=False)
        return sample, RowReader(row, self.task.fields, self.task.images_root).read_image_sizes()

    def iterate_without_images(self) -> Iterator[Sample | DataError]:
        """The samples without their pictures, in order, or why one cannot be read; only these columns are read."""
        row_numbers = set(self.rows)
        columns = self.task.list_columns(with_images=False)
        for row_number, row in enumerate(self.table.iterate_rows(columns)):
            if row_number in row_numbers:
                try:
                    yield self.task.build_sample(row, self.split, row_number, with_images=False)
                except DataError as error:
                    yield error

    def find_bad_samples(self, scorer: Callable[[str, Sample], Mapping[str, Any]]) -> dict[str, str]:
        """Open every picture, score every reference; row number -> "id: reason" of the bad samples."""
        bad_samples: dict[str, str] = {}
        first_rows: dict[str, int] = {}
        row_numbers = set(self.rows)

        def inspect_sample(item: tuple[int, dict[str, Any]]) -> str | None:
            number, row = item
            try:
                sample = self.task.build_sample(row, self.split, number)
                pixels = tuple(hash_pixels(image) for image in sample.images)
                self.inspections[number] = SampleInspection(sample.id, sample.image_id, pixels)
                scorer(self.task.get_target_answer(sample), sample)
            except DataError as error:
                return str(error).removeprefix("sample ")
            return None

        if not self.table.is_streamed and len(row_numbers) < len(self.table) // 2:
            rows = ((number, self._read_row(number)) for number in self.rows)
        else:
            rows = ((number, row) for number, row in enumerate(self.table.iterate_rows()) if number in row_numbers)
        self.inspections = {}  # a part of these samples may share the dictionary
        with ThreadPoolExecutor() as pool:
            while chunk := list(islice(rows, SCAN_CHUNK_SIZE)):
                for (number, row), reason in zip(chunk, pool.map(inspect_sample, chunk), strict=True):
                    sample_id = self.task.build_sample_id(row, self.split, number)
                    first = first_rows.setdefault(sample_id, number)
                    if reason is None and first != number:
                        reason = f"{sample_id}: the id of row {first} again (row {number})"
                    if reason is not None:
                        bad_samples[str(number)] = reason
        opened = self.inspections.values()
        ids = merge_image_ids([one.image_id for one in opened], [one.pixel_hashes for one in opened])
        self.image_ids = dict(zip(self.inspections, ids, strict=True))
        return bad_samples

    def copy_inspections(self, other: SampleSet) -> None:
        """Know what `bad` found when it opened the same samples."""
        if isinstance(other, HubSamples):
            self.inspections, self.image_ids = other.inspections, other.image_ids

    def index_pixels(self) -> dict[str, str]:
        """Digest of every picture's pixels -> id of the first sample that shows it, when `bad` has opened them."""
        first_samples: dict[str, str] = {}
        for number in sorted(self.inspections):
            for pixels in self.inspections[number].pixel_hashes:
                first_samples.setdefault(pixels, self.inspections[number].id)
        return first_samples

    def exclude_samples(self, bad_samples: Mapping[str, str]) -> HubSamples:
        """The samples that are not in `bad`; the others are in `skipped`."""
        if not bad_samples:
            return self
        skipped = self.skipped | {
            str(number): bad_samples[str(number)] for number in self.rows if str(number) in bad_samples
        }
        return self._copy_with_rows([number for number in self.rows if str(number) not in bad_samples], skipped)

    def select_samples(self, positions: Sequence[int], unreadable: Mapping[int, str] | None = None) -> HubSamples:
        """See `SampleSet.select_samples`; `skipped` names what is unreadable by its row."""
        newly_skipped = {str(self.rows[position]): reason for position, reason in (unreadable or {}).items()}
        return self._copy_with_rows([self.rows[position] for position in positions], {**self.skipped, **newly_skipped})

    def _copy_with_rows(self, rows: Sequence[int], skipped: Mapping[str, str]) -> HubSamples:
        copied = HubSamples.__new__(HubSamples)
        copied.__dict__.update(self.__dict__, rows=rows, skipped=dict(skipped), _stream=None, _next=0)
        return copied

    def _read_row(self, row_number: int) -> dict[str, Any]:
        if not self.table.is_streamed:
            return self.table.read_row(row_number)
        if self._stream is None or row_number < self._next:
            self._stream, self._next = enumerate(self.table.iterate_rows()), 0
        for current, row in self._stream:
            self._next = current + 1
            if current == row_number:
                return row
        raise DataError(f"task {self.task.name}: {self.table.source.display_name} ended before row {row_number}")


def select_row_numbers(task: RowTask, dataset_split: DatasetSplit) -> Sequence[int]:
    """The rows that `where` keeps; a class label can be given by its name or by its number."""
    if not task.where or dataset_split.is_filtered:
        return range(len(dataset_split))
    columns = list(task.where)
    expected = {column: dataset_split.resolve_label(column, value) for column, value in task.where.items()}
    return [
        number
        for number, row in enumerate(dataset_split.iterate_rows(columns))
        if all(row.get(column) == value for column, value in expected.items())
    ]
