"""A published data set as a task: opened with `datasets`, read row by row, validated before work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.tasks.bad_samples import apply_bad_sample_policy, validate_policy
from lmm_forget.tasks.dataset_source import DatasetSource, DatasetSplit
from lmm_forget.tasks.file_rows import FileRows
from lmm_forget.tasks.hub_samples import SCAN_CHUNK_SIZE, HubSamples, select_row_numbers
from lmm_forget.tasks.image_clusters import (
    SampleImages,
    assign_splits,
    cluster_rows,
    cluster_samples,
    divide_rows,
    find_shared_images,
)
from lmm_forget.tasks.images import (
    IMAGE_FORMAT_VERSION,
    ImageSource,
    get_image_name,
    hash_image_file,
    inspect_images,
    parse_image_source,
)
from lmm_forget.tasks.jsonl import FileSamples, build_split_samples
from lmm_forget.tasks.lettered_choices import append_choices
from lmm_forget.tasks.row_reader import RowReader
from lmm_forget.tasks.task import SPLITS, Sample, SplitOverlap, Task, hash_json_parts
from lmm_forget.tasks.text_values import UnreadableCell, convert_to_text

ROW_FORMAT_VERSION = 2
"""Version of the code that turns rows into samples; raised when the same rows give other samples."""
FIELDS = ("question", "answer", "answers", "image", "choices", "system", "id", "image_id")
"""Fields of a sample that `fields` can map to columns."""


@dataclass(frozen=True)
class ParsedRow:
    """The content of a row except its images; see `Sample`."""

    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class HubTask(Task):
    """Questions from a data set on the Hugging Face hub, or from a local copy in the same schema.

    `hub`, `config` and `revision` identify it on the hub (`revision` null: the newest; records name the one that was
    read). `path` is a local copy instead (a folder of `Dataset.save_to_disk`, a parquet or arrow file, or a folder of
    them such as a downloaded repository), or a mapping from splits to copies. `splits` maps train, validation and test
    to the published names of the splits. `fields` maps fields of a sample to columns: `question`, `answer` or
    `answers`, `image` (one image or a list), optionally `choices` (a list column, or several columns), `system` (the
    system prompt), `id`, `image_id`. Without `id`, the id of a sample is made from its row number. Samples whose images
    have equal pixels or equal `image_id` form one cluster. Image files that a row only names are below `images_root`.
    Values become text by the rules of `convert_to_text`, class labels become their names. `meta` lists columns that go
    to `Sample.meta`. `where` keeps only rows with these values (column -> value). `streaming` reads evaluation splits
    row by row and stores nothing on disk.

    A target without a validation split takes `validation_fraction` of its training images for validation, chosen by a
    hash of `split_seed` and their image id or else their content. `validate_split` checks rows, images and references.
    `prompt_options` are the prefixes, suffixes and `macro` of every `Task`.

    Subclasses override `parse_row` (row -> question, answers) if a data set needs more than a mapping of columns, and
    `load_training_rows` if training data come from files.
    """

    required_fields: tuple[str, ...] = ("question",)
    """Fields that `parse_row` of a subclass requires."""
    optional_fields: tuple[str, ...] = ()
    """Fields that `parse_row` of a subclass reads in addition to `FIELDS`."""

    def __init__(
        self,
        *,
        name: str,
        role: str,
        splits: Mapping[str, str],
        fields: Mapping[str, Any],
        hub: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        path: str | Mapping[str, str] | None = None,
        images_root: str | None = None,
        streaming: bool = False,
        where: Mapping[str, Any] | None = None,
        meta: Sequence[str] = (),
        train_path: str | None = None,
        validation_fraction: float = 0.0,
        split_seed: int = 0,
        **prompt_options: Any,
    ) -> None:
        super().__init__(name=name, role=role, **prompt_options)
        unknown_splits = sorted(set(splits) - set(SPLITS))
        if unknown_splits or not splits:
            raise ConfigError(
                f"task {name}: splits has {', '.join(unknown_splits) or 'nothing'}; it maps {', '.join(SPLITS)}"
            )
        missing_fields = [name for name in self.required_fields if fields.get(name) is None]
        if missing_fields:
            raise ConfigError(
                f"task {name}: fields gives no column for {missing_fields[0]!r}; it has {', '.join(fields)}"
            )
        known_fields = (*FIELDS, *self.optional_fields)
        unknown_fields = [name for name in fields if name not in known_fields]
        if unknown_fields:
            raise ConfigError(
                f"task {name}: fields has {unknown_fields[0]!r}; it maps {', '.join(known_fields)} to columns"
            )
        if fields.get("answer") is not None and fields.get("answers") is not None:
            raise ConfigError(f"task {name}: fields has both 'answer' and 'answers'; give one of them")
        if not 0 <= validation_fraction < 1:
            raise ConfigError(f"task {name}: validation_fraction {validation_fraction} must be from 0 to below 1")
        self.hub, self.config, self.revision, self.path = hub, config, revision, path
        self.splits = dict(splits)
        self.fields = {key: value for key, value in fields.items() if value is not None}
        self.images_root = None if images_root is None else Path(images_root).expanduser()
        self.streaming = streaming
        self.where = dict(where or {})
        self.meta = tuple(meta)
        self.train_path = train_path
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed
        self._open_splits: dict[str, DatasetSplit] = {}
        self._samples_by_split: dict[str, HubSamples | FileSamples] = {}
        self._training_samples: dict[str, FileSamples] | None = None
        self._bad_samples: dict[str, dict[str, str]] = {}
        self._scanned_samples: dict[str, HubSamples | FileSamples] = {}
        self._pixel_index: dict[str, dict[str, str]] = {}
        self._train_division: dict[str, list[int]] | None = None

    # --- for subclasses to override ----------------------------------------------------------------------------

    def parse_row(self, reader: RowReader, split: str) -> ParsedRow:
        """Question, references, options and meta of one row. Raises DataError; its message has no sample id."""
        answers = reader.read_texts("answers" if "answers" in reader else "answer")
        choices = reader.read_texts("choices") if "choices" in reader else None
        question = reader.read_question()
        return ParsedRow(
            append_choices(question, choices) if choices else question,
            answers,
            choices,
            self.read_meta(reader),
        )

    def load_training_rows(self) -> FileRows | None:
        """Rows of a target's training (and validation) files; None if the data set itself has these splits."""
        return None

    # --- the task -------------------------------------------------------------------------------------------

    def read_meta(self, reader: RowReader) -> dict[str, Any]:
        """The stored values of the columns in `meta`. Raises DataError for a value that cannot be read."""
        meta = {column: reader.row.get(column) for column in self.meta}
        for column, value in meta.items():
            if isinstance(value, UnreadableCell):
                raise DataError(f"{column!r} {value}")
        return meta

    def load_samples(self, split: str) -> HubSamples | FileSamples:
        """The split's samples; images are opened when a sample is accessed.

        Raises DataError if there is no such split, or if a row of a training file cannot be used.
        """
        samples = self.load_readable_samples(split)
        if isinstance(samples, FileSamples):
            total = len(samples) + len(samples.skipped)
            apply_bad_sample_policy(samples.skipped, total, "fail", task_name=self.name, noun=f"{split} samples")
        return samples

    def load_readable_samples(self, split: str) -> HubSamples | FileSamples:
        """See `Task.load_readable_samples`; rows of a data set are read and checked only when they are needed."""
        if split not in SPLITS:
            raise DataError(f"task {self.name}: no split {split!r}; there are {', '.join(SPLITS)}")
        if split not in self._samples_by_split:
            self._samples_by_split[split] = self._load_split(split)
        return self._samples_by_split[split]

    def fingerprint_split(self, split: str) -> str:
        """Digest of the published revision (or of a copy's content) and of the settings by which rows are read."""
        samples = self.load_readable_samples(split)
        if isinstance(samples, FileSamples):
            return samples.compute_fingerprint()
        read_settings = [type(self).__qualname__, self.fields, self.where, self.meta]
        read_settings += [[hash_image_file(image) or "missing" for image in self._list_image_sources(samples.table)]]
        if samples.table.class_labels:
            read_settings.append(samples.table.class_labels)
        cut_settings = [self.validation_fraction, self.split_seed] if samples.cut else []
        return hash_json_parts(
            "hub",
            ROW_FORMAT_VERSION,
            IMAGE_FORMAT_VERSION,
            samples.table.content_id,
            read_settings,
            cut_settings,
            split if cut_settings else "",
        )

    def _list_image_sources(self, dataset_split: DatasetSplit) -> list[ImageSource]:
        """Image files that the rows only name; the split's `content_id` does not cover their content."""
        names = dataset_split.list_image_files(self.fields["image"]) if "image" in self.fields else ()
        return [parse_image_source(name, self.images_root or Path()) for name in names]

    def validate_split(self, split: str, on_bad_sample: str = "fail") -> HubSamples | FileSamples:
        """Open every image and score every reference of the split once; return the usable samples.

        A streamed split is checked here only under "skip", else while evaluation reads it. With "skip" bad samples are
        left out; `skipped` of the result has the reasons. Raises DataError if a sample is bad ("fail"), or if no
        sample is left.
        """
        validate_policy(on_bad_sample)
        return self.filter_usable_samples(self.load_readable_samples(split), split, on_bad_sample)

    def filter_usable_samples(
        self, samples: HubSamples | FileSamples, split: str, on_bad_sample: str
    ) -> HubSamples | FileSamples:
        """`validate_split` for a part of a split: only these samples are opened."""
        bad_samples = dict(samples.skipped)
        is_streamed = isinstance(samples, HubSamples) and samples.table.is_streamed
        # Under "fail" a stream is checked while evaluation reads it: a check here would download it twice.
        if not is_streamed or on_bad_sample == "skip":
            key = hash_json_parts(
                split, [str(number) for number in samples.rows] if isinstance(samples, HubSamples) else []
            )
            if key not in self._bad_samples:
                self._bad_samples[key] = samples.find_bad_samples(self.scorer)
                self._scanned_samples[key] = samples
            elif isinstance(samples, HubSamples):
                samples.copy_inspections(self._scanned_samples[key])
            bad_samples |= self._bad_samples[key]
            self._pixel_index.setdefault(split, {}).update(samples.index_pixels())
        total = len(samples) + len(samples.skipped)
        apply_bad_sample_policy(bad_samples, total, on_bad_sample, task_name=self.name, noun=f"{split} samples")
        return samples.exclude_samples(bad_samples)

    def hash_data(self, splits: Sequence[str]) -> str | None:
        """See `Task.hash_data`: covers local copies and training files; None if all splits come from the hub."""
        digests: list[Any] = []
        for split in splits:
            if split != "test" and "train" not in self.splits:
                training_rows = self.load_training_rows()
                digests.append(None if training_rows is None else training_rows.hash_content())
                continue
            published = split if split in self.splits else "train"
            path = self.path.get(published) if isinstance(self.path, Mapping) else self.path
            if path is not None:
                dataset_split = self._open_split(published)
                digests.append(
                    [
                        dataset_split.content_id,
                        [hash_image_file(image) for image in self._list_image_sources(dataset_split)],
                    ]
                )
        return hash_json_parts(digests) if digests else None

    def find_split_overlap(self) -> SplitOverlap:
        """See `Task.find_split_overlap`; streamed splits are not compared, because they are not read beforehand."""
        return find_shared_images(self._pixel_index)

    def get_provenance(self) -> dict[str, str]:
        """Split -> `hub@revision` or "local copy", for every split that was opened."""
        return {
            split: f"{self.hub}@{table.revision}" if table.source.path is None else "local copy"
            for split, table in self._open_splits.items()
        }

    def build_sample_id(self, row: Mapping[str, Any], split: str, row_number: int) -> str:
        """The id of a row: the text of its `id` column, or `<split>-<row number>` if there is none."""
        try:
            return convert_to_text(row.get(self.fields["id"]), "") if "id" in self.fields else f"{split}-{row_number}"
        except DataError:
            return f"{split}-{row_number}"

    def build_sample(self, row: Mapping[str, Any], split: str, row_number: int, *, with_images: bool = True) -> Sample:
        """Build the sample of a stored row, with its images or without. Raises DataError that names the sample's id."""
        reader = RowReader(row, self.fields, self.images_root)
        sample_id, system = self.build_sample_id(row, split, row_number), ""
        try:
            if "id" in reader:
                reader.read_text("id")
            parsed = self.parse_row(reader, split)
            system = reader.read_optional_text("system")
            images = reader.read_images() if with_images else ()
            image_id = reader.read_text("image_id") if "image_id" in reader else ""
            if not image_id and with_images:
                image_id = reader.hash_images() if "image" in reader else sample_id
        except DataError as error:
            raise DataError(f"sample {sample_id}: {error}") from None
        return Sample(
            sample_id,
            image_id,
            images,
            parsed.question,
            parsed.answers,
            parsed.choices,
            parsed.meta,
            system or None,
        )

    def list_columns(self, *, with_images: bool = True) -> tuple[str, ...]:
        """The columns that this task reads."""
        columns: list[str] = []
        for field_name, column in self.fields.items():
            if with_images or field_name != "image":
                columns += [column] if isinstance(column, str) else list(column)
        return tuple(dict.fromkeys([*columns, *self.meta, *self.where]))

    # --- splits ---------------------------------------------------------------------------------------------

    def _load_split(self, split: str) -> HubSamples | FileSamples:
        if split != "test" and "train" not in self.splits:
            files = self._load_training_samples().get(split)
            if files is None or not (files or files.skipped):
                raise self._make_missing_split_error(split, "" if self.role == "target" else "; it is not trained")
            return files
        if split in self.splits and not (split == "train" and self._has_validation_cut()):
            return HubSamples(self, self._open_split(split), split)
        if split == "test" or not self._has_validation_cut():
            raise self._make_missing_split_error(
                split, "; a target's validation_fraction cuts one" if split == "validation" else ""
            )
        return self._cut_train_split(split)

    def _has_validation_cut(self) -> bool:
        return self.role == "target" and "validation" not in self.splits and self.validation_fraction > 0

    def _make_missing_split_error(self, split: str, hint: str) -> DataError:
        return DataError(f"task {self.name}: no {split} samples; it has {', '.join(self.splits)}{hint}")

    def _load_training_samples(self) -> dict[str, FileSamples]:
        if self._training_samples is None:
            training_rows = self.load_training_rows() if self.role == "target" else None
            if training_rows is None:
                return {}
            inspections = inspect_images(image for row in training_rows.rows for image in row.images)
            image_clusters = cluster_rows(training_rows.rows, inspections)
            has_own_splits = any(row.split for row in training_rows.rows)
            fractions = {} if has_own_splits else {"validation": self.validation_fraction}
            positions = divide_rows(training_rows.rows, image_clusters, fractions, self.split_seed)
            self._training_samples = build_split_samples(
                training_rows, training_rows.rows, image_clusters, positions, "train", inspections
            )
        return self._training_samples

    def _cut_train_split(self, split: str) -> HubSamples:
        """The train or the validation part of a published train split; no image is in both."""
        dataset_split = self._open_split("train")
        if self._train_division is None:
            self._train_division = self._divide_train_rows(dataset_split)
        return HubSamples(self, dataset_split, "train", self._train_division[split], is_cut=True)

    def _divide_train_rows(self, dataset_split: DatasetSplit) -> dict[str, list[int]]:
        """Split ("train", "validation") -> row numbers in the published train split."""
        kept_rows = select_row_numbers(self, dataset_split)
        kept_numbers = kept_rows if isinstance(kept_rows, range) else set(kept_rows)
        columns = [self.fields[field] for field in ("id", "image_id", "image") if field in self.fields]
        rows = (
            (number, row)
            for number, row in enumerate(dataset_split.iterate_rows(columns or self.list_columns()))
            if number in kept_numbers
        )
        numbers: list[int] = []
        sample_images: list[SampleImages] = []
        known_pixels: dict[str, str] = {}
        while chunk := list(islice(rows, SCAN_CHUNK_SIZE)):
            chunk_sources = [self._read_image_sources(row) for _, row in chunk]
            inspections = inspect_images(
                (source for sources in chunk_sources for source in sources.values()), known_pixels
            )
            for (number, row), sources in zip(chunk, chunk_sources, strict=True):
                numbers.append(number)
                image_id = self._read_image_id(row)
                sample_images.append(
                    SampleImages.from_inspections(
                        self.build_sample_id(row, "train", number), image_id, sources, inspections
                    )
                )
        sample_clusters = cluster_samples(sample_images)
        fractions = {"validation": self.validation_fraction}
        split_by_key = assign_splits((cluster.split_key for cluster in sample_clusters), fractions, self.split_seed)
        rows_by_split: dict[str, list[int]] = {"train": [], "validation": []}
        for number, cluster in zip(numbers, sample_clusters, strict=True):
            rows_by_split[split_by_key[cluster.split_key]].append(number)
        return rows_by_split

    def _read_image_id(self, row: Mapping[str, Any]) -> str | None:
        """The image id that the row gives; None if it gives none or cannot be read."""
        reader = RowReader(row, self.fields)
        try:
            return reader.read_optional_text("image_id") or None
        except DataError:
            return None

    def _read_image_sources(self, row: Mapping[str, Any]) -> dict[str, ImageSource]:
        """Name -> source of the row's images; empty if the row cannot be read."""
        try:
            sources = RowReader(row, self.fields, self.images_root).list_image_sources()
        except DataError:
            return {}
        return {get_image_name(source, self.images_root or Path()): source for source in sources}

    def _open_split(self, split: str) -> DatasetSplit:
        if split not in self._open_splits:
            path = self.path.get(split) if isinstance(self.path, Mapping) else self.path
            source = DatasetSource(
                task_name=self.name,
                hub=self.hub,
                split=self.splits[split],
                columns=self.list_columns(),
                config=self.config,
                revision=self.revision,
                path=None if path is None else str(path),
                streaming=self.streaming and split == "test",
                filters=tuple(self.where.items()),
                is_only_split=len(self.splits) == 1 or isinstance(self.path, Mapping),
            )
            self._open_splits[split] = source.open_split()
        return self._open_splits[split]
