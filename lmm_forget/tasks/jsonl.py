"""A skill or benchmark that a user brings: a JSONL file of questions about image files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.tasks.bad_samples import apply_bad_sample_policy, validate_policy
from lmm_forget.tasks.file_rows import FileRow, FileRows, read_jsonl_rows
from lmm_forget.tasks.image_clusters import (
    ImageCluster,
    assign_splits,
    cluster_rows,
    divide_rows,
    find_shared_images,
)
from lmm_forget.tasks.images import IMAGE_FORMAT_VERSION as IMAGES_VERSION
from lmm_forget.tasks.images import (
    ImageInspection,
    ImageSource,
    hash_image_file,
    inspect_images,
    read_image,
    read_image_size,
)
from lmm_forget.tasks.lettered_choices import append_choices
from lmm_forget.tasks.sample_set import SampleSet
from lmm_forget.tasks.task import SPLITS, Sample, Scorer, SplitOverlap, Task, hash_json_parts


class JsonlTask(Task):
    """Questions from a file with one JSON object per line: {id, image|images, question, answer|answers}.

    Optional keys: `choices` (texts of lettered options, which are put under the question unless
    `list_choices` is false; the answer is then a letter), `system` (the system prompt, of models whose chat
    template takes one), `split` (train, validation or test), `image_id` (joins rows whose images show the same
    thing); all other keys go to `Sample.meta`. Values become text by the rules of `values.convert_to_text`.

    `path` is a file, or a mapping from splits to files; relative paths start at the working directory.
    Relative image paths start at `images_root`, or at the folder of the JSONL file; an image can also be a
    `data:image/…;base64,` URL. Images are the same when their pixels are, whatever their files are called. Without
    splits in the file, every image goes by the hash of its content (with `split_seed`) to test (`test_fraction`),
    validation (`validation_fraction`) or train; all questions about an image stay together. A held-out task without
    splits is all test. With separate files and none for validation, `validation_fraction` of train's images
    is set apart.

    One file can be both taught and held out: of two YAMLs over it with the same `held_out_fraction` and
    `split_seed`, the held-out one gets that share of the images, and the target never sees them.

    `asked` are the prefixes, suffixes and `macro` of every `Task`.

    The file is read at the first use, images when a sample is read. A line that cannot be used is a bad sample,
    named with file and line: `samples` and `check` refuse it, `check(split, "skip")` leaves it out.
    """

    def __init__(
        self,
        *,
        name: str,
        role: str,
        path: str | Mapping[str, str],
        scorer: Scorer,
        max_new_tokens: int,
        images_root: str | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        held_out_fraction: float = 0.0,
        list_choices: bool = True,
        **prompt_options: Any,
    ) -> None:
        super().__init__(
            name=name,
            role=role,
            max_new_tokens=max_new_tokens,
            scorer=scorer,
            **prompt_options,
        )
        if min(validation_fraction, test_fraction) < 0 or validation_fraction + test_fraction >= 1:
            raise ConfigError(
                f"task {name}: validation_fraction {validation_fraction} and test_fraction {test_fraction} must "
                "be 0 or more and leave something to train on"
            )
        if not 0 <= held_out_fraction < 1:
            raise ConfigError(f"task {name}: held_out_fraction {held_out_fraction} must be from 0 to below 1")
        self.held_out_fraction = held_out_fraction
        if not isinstance(path, str | Mapping):
            raise ConfigError(f"task {name}: path={path} must be a file, or files by split: {{train: …, test: …}}")
        self.path = path
        self.images_root = images_root
        self.validation_fraction = validation_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.list_choices = list_choices
        self._samples_by_split: dict[str, FileSamples] | None = None
        self._bad_samples: dict[str, str] | None = None

    def read_file(self, path: Path, root: Path | None) -> FileRows:
        """The rows of one file, images below `root` or the file's folder; other formats override it. DataError."""
        return read_jsonl_rows(path, root)

    def load_samples(self, split: str) -> FileSamples:
        """Samples of a split in the order of the file, images opened when a sample is read.

        Raises DataError if a row of the file cannot be used; `readable` gives the others.
        """
        samples_by_split = self._load_splits()
        unreadable = {place: reason for part in samples_by_split.values() for place, reason in part.skipped.items()}
        total = len(unreadable) + sum(len(part) for part in samples_by_split.values())
        apply_bad_sample_policy(unreadable, total, "fail", task_name=self.name)
        return self.load_readable_samples(split)

    def load_readable_samples(self, split: str) -> FileSamples:
        """See `Task.readable`; a row whose split cannot be told counts as one of train (held out: of test)."""
        if split not in SPLITS:
            raise DataError(f"task {self.name}: no split {split!r}; there are {', '.join(SPLITS)}")
        samples_by_split = self._load_splits()
        part = samples_by_split[split]
        if not part:
            apply_bad_sample_policy(
                part.skipped, len(part.skipped), "skip", task_name=self.name, noun=f"{split} samples"
            )
            sizes = ", ".join(f"{name} {len(samples_by_split[name])}" for name in SPLITS)
            raise DataError(f"task {self.name}: {self._describe_path()} gives no {split} samples ({sizes})")
        return part

    def fingerprint_split(self, split: str) -> str:
        """Digest of the split's rows, of its images' bytes, and of the way images are read."""
        return self.load_readable_samples(split).compute_fingerprint()

    def validate_split(self, split: str, on_bad_sample: str = "fail") -> FileSamples:
        """Read the file, open every image and score every reference of it once; returns a split's usable samples.

        With "skip" the bad ones are left out, and `FileSamples.skipped` says why. Raises DataError if any
        sample of any split is bad ("fail"), or if none is left.
        """
        validate_policy(on_bad_sample)
        samples_by_split = self._load_splits()
        if self._bad_samples is None:
            self._bad_samples = {
                place: reason for part in samples_by_split.values() for place, reason in part.skipped.items()
            }
            for part in samples_by_split.values():
                self._bad_samples.update(part.find_bad_samples(self.scorer))
        total = sum(len(part) + len(part.skipped) for part in samples_by_split.values())
        if on_bad_sample == "fail":
            apply_bad_sample_policy(self._bad_samples, total, on_bad_sample, task_name=self.name)
        usable = self.load_readable_samples(split).exclude_samples(self._bad_samples)
        split_total = len(usable) + len(usable.skipped)
        apply_bad_sample_policy(usable.skipped, split_total, "skip", task_name=self.name, noun=f"{split} samples")
        return usable

    def _load_splits(self) -> dict[str, FileSamples]:
        """The splits' samples; `skipped` of each says which rows could not be read."""
        if self._samples_by_split is None:
            file_rows = self._read_all_rows()
            rows = file_rows.rows
            inspections = inspect_images(image for row in rows for image in row.images)
            image_clusters = cluster_rows(rows, inspections)
            if self.held_out_fraction and rows:
                rows, image_clusters = self._select_share(rows, image_clusters)
            is_single_file = isinstance(self.path, str)
            if is_single_file and self.role != "target":
                use_given_split = None if self.held_out_fraction else "given"  # a share is held out as a whole
                if use_given_split is None:
                    file_rows.bad_row_splits.clear()
                rows = [replace(row, split=(use_given_split and row.split) or "test") for row in rows]
            test_fraction = self.test_fraction if is_single_file else 0.0
            fractions = {"test": test_fraction, "validation": self.validation_fraction}
            positions = divide_rows(rows, image_clusters, fractions, self.split_seed)
            default_split = "train" if self.role == "target" else "test"
            self._samples_by_split = build_split_samples(
                file_rows, rows, image_clusters, positions, default_split, inspections, self.list_choices
            )
        return self._samples_by_split

    def hash_data(self, splits: Sequence[str]) -> str:
        """See `Task.content`: of the whole file, since its rows and pictures decide together what is in a split."""
        return self._read_all_rows().hash_content()

    def find_split_overlap(self) -> SplitOverlap:
        """See `Task.find_split_overlap`: of rows whose split is given, since all others are divided by picture."""
        return find_shared_images({split: part.index_pixels() for split, part in self._load_splits().items()})

    def _select_share(
        self, rows: list[FileRow], image_clusters: list[ImageCluster]
    ) -> tuple[list[FileRow], list[ImageCluster]]:
        """The rows of the images that this role has of a file that is both taught and held out."""
        share_by_key = assign_splits(
            (f"held out/{image.split_key}" for image in image_clusters),
            {"test": self.held_out_fraction},
            self.split_seed,
        )
        is_selected = [
            (share_by_key[f"held out/{image.split_key}"] == "test") == (self.role != "target")
            for image in image_clusters
        ]
        if not any(is_selected):
            raise DataError(
                f"task {self.name}: held_out_fraction {self.held_out_fraction} leaves no image for {self.role}"
            )
        return [r for r, own in zip(rows, is_selected, strict=True) if own], [
            i for i, own in zip(image_clusters, is_selected, strict=True) if own
        ]

    def _read_all_rows(self) -> FileRows:
        root = None if self.images_root is None else Path(self.images_root).expanduser()
        if isinstance(self.path, str):
            return self.read_file(Path(self.path).expanduser(), root)
        if not self.path or set(self.path) - set(SPLITS):
            raise ConfigError(
                f"task {self.name}: path has {', '.join(self.path or []) or 'nothing'}; give one file, or files "
                f"for {', '.join(SPLITS)}"
            )
        all_rows = FileRows()
        for split, file in self.path.items():
            part = self.read_file(Path(file).expanduser(), root)
            part.reject_rows(partial(_find_split_conflict, split))
            # Validation images are cut from train's by hash where no file is given for them.
            has_validation_cut = split == "train" and "validation" not in self.path
            for row in part.rows:  # an id counts within its file
                all_rows.rows.append(row if has_validation_cut and row.split is None else replace(row, split=split))
            for location, reason in part.bad_rows.items():
                all_rows.reject_row(location, reason, split)
        return all_rows

    def _describe_path(self) -> str:
        return self.path if isinstance(self.path, str) else ", ".join(self.path.values())


def _find_split_conflict(split: str, row: FileRow) -> str | None:
    """Why a row cannot be in the file that `path` gives for `split`."""
    is_misplaced = row.split not in (None, split)
    return f"split {row.split!r} in the file that `path` gives for {split}" if is_misplaced else None


def build_split_samples(
    file_rows: FileRows,
    rows: Sequence[FileRow],
    image_clusters: Sequence[ImageCluster],
    positions: Mapping[str, Sequence[int]],
    default_split: str,
    inspections: Mapping[ImageSource, ImageInspection],
    list_choices: bool = True,
) -> dict[str, FileSamples]:
    """The samples of every split: `positions` has those of its rows; a bad row without a split is of `default_split`.

    `inspections` is what opening the rows' images showed.
    """
    return {
        split: FileSamples(
            [rows[i] for i in at],
            [image_clusters[i].image_id for i in at],
            list_choices,
            {
                place: reason
                for place, reason in file_rows.bad_rows.items()
                if file_rows.bad_row_splits.get(place, default_split) == split
            },
            inspections=inspections,
        )
        for split, at in positions.items()
    }


class FileSamples(SampleSet):
    """Samples of one split; an image is opened when its sample is read.

    `skipped` maps `file:line` of what cannot be used to "id: reason": rows that could not be read, and samples that
    `JsonlTask.check` left out. `pictures` is what opening them showed when the file was read.
    """

    def __init__(
        self,
        rows: Sequence[FileRow],
        image_ids: Sequence[str],
        list_choices: bool = True,
        skipped: Mapping[str, str] | None = None,
        *,
        inspections: Mapping[ImageSource, ImageInspection],
    ) -> None:
        self.rows = rows
        self.image_ids = image_ids
        self.list_choices = list_choices
        self.skipped: dict[str, str] = dict(skipped or {})
        self.pictures = inspections

    def __len__(self) -> int:
        return len(self.rows)

    def read_sample(self, index: int) -> Sample:
        """See `SampleSet.read_sample`."""
        row = self.rows[index]
        try:
            return self._build_sample(row, self.image_ids[index], tuple(read_image(path) for path in row.images))
        except DataError as error:
            raise DataError(f"sample {row.id}: {error}") from None

    def compute_fingerprint(self) -> str:
        """Digest of the rows, of their images' bytes (as they are now), and of the way images are read."""
        content = []
        for row in self.rows:
            meta = dict(sorted(row.meta.items()))
            image_hashes = [hash_image_file(image) or "missing" for image in row.images]
            system = [] if row.system is None else [row.system]
            content.append([row.id, row.image_id, row.question, row.answers, row.choices, meta, image_hashes, *system])
        return hash_json_parts("jsonl", IMAGES_VERSION, self.list_choices, content)

    def peek_sample(self, index: int) -> tuple[Sample, list[tuple[int, int]]]:
        """A sample without its pictures, and their sizes (upright), which are not decoded."""
        row = self.rows[index]
        return self._build_sample(row, self.image_ids[index], ()), [read_image_size(path) for path in row.images]

    def iterate_without_images(self) -> Iterator[Sample]:
        """The samples without their pictures, in order."""
        for row, image_id in zip(self.rows, self.image_ids, strict=True):
            yield self._build_sample(row, image_id, ())

    def find_bad_samples(self, scorer: Scorer) -> dict[str, str]:
        """Open every image, score every reference; `file:line` -> "id: reason" of the bad samples."""
        bad_samples: dict[str, str] = {}
        for row, image_id in zip(self.rows, self.image_ids, strict=True):
            reasons = (self.pictures[image].reason for image in row.images)
            reason = next(filter(None, reasons), None)
            reason = reason or _find_scoring_problem(scorer, self._build_sample(row, image_id, ()))
            if reason:
                bad_samples[row.location] = f"{row.id}: {reason}"
        return bad_samples

    def exclude_samples(self, bad_samples: Mapping[str, str]) -> FileSamples:
        """The samples that are not in `bad`; the others are in `skipped`."""
        kept_positions = [i for i, row in enumerate(self.rows) if row.location not in bad_samples]
        excluded = {i: bad_samples[row.location] for i, row in enumerate(self.rows) if row.location in bad_samples}
        return self.select_samples(kept_positions, excluded)

    def select_samples(self, positions: Sequence[int], unreadable: Mapping[int, str] | None = None) -> FileSamples:
        """See `SampleSet.select_samples`; `skipped` names what is unreadable by file and line."""
        newly_skipped = {self.rows[position].location: reason for position, reason in (unreadable or {}).items()}
        return FileSamples(
            [self.rows[position] for position in positions],
            [self.image_ids[position] for position in positions],
            self.list_choices,
            {**self.skipped, **newly_skipped},
            inspections=self.pictures,
        )

    def index_pixels(self) -> dict[str, str]:
        """Digest of every picture's pixels -> id of the first sample that shows it."""
        first_samples: dict[str, str] = {}
        for row in self.rows:
            for image in row.images:
                if (pixels := self.pictures[image].pixel_hash) is not None:
                    first_samples.setdefault(pixels, row.id)
        return first_samples

    def _build_sample(self, row: FileRow, image_id: str, images: tuple[Image.Image, ...]) -> Sample:
        question = append_choices(row.question, row.choices) if row.choices and self.list_choices else row.question
        return Sample(
            id=row.id,
            image_id=image_id,
            images=images,
            question=question,
            answers=row.answers,
            choices=row.choices,
            meta=row.meta,
            system=row.system,
        )


def _find_scoring_problem(scorer: Scorer, sample: Sample) -> str | None:
    """Why a scorer cannot be used with a sample's reference."""
    try:
        value = scorer(sample.answers[0], sample)["value"]
    except DataError as error:
        return str(error).removeprefix(f"sample {sample.id}: ")
    # annotators may disagree: then no answer of theirs reaches 1 in VQA accuracy
    return None if value else f"its own answer {sample.answers[0]!r} scores {value} of 1"
