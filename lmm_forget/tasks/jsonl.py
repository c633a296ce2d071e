"""A skill or benchmark that a user brings: a JSONL file of questions about image files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.tasks.bad_samples import require_policy, settle
from lmm_forget.tasks.base import SPLITS, Sample, Scorer, SharedPictures, Task, digest
from lmm_forget.tasks.choices import listed
from lmm_forget.tasks.clusters import Cluster, assign, clusters, divide, shared
from lmm_forget.tasks.images import VERSION as IMAGES_VERSION
from lmm_forget.tasks.images import (
    Inspected,
    Source,
    content_digest,
    inspect_all,
    picture_size,
    read_image,
)
from lmm_forget.tasks.rows import FileRows, Row, read_rows


class JsonlTask(Task):
    """Questions from a file with one JSON object per line: {id, image|images, question, answer|answers}.

    Optional keys: `choices` (texts of lettered options, which are put under the question unless
    `list_choices` is false; the answer is then a letter), `system` (the system prompt, of models whose chat
    template takes one), `split` (train, validation or test), `image_id` (joins rows whose images show the same
    thing); all other keys go to `Sample.meta`. Values become text by the rules of `values.text_of`.

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
        **asked: Any,
    ) -> None:
        super().__init__(
            name=name,
            role=role,
            max_new_tokens=max_new_tokens,
            scorer=scorer,
            **asked,
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
            raise ConfigError(
                f"task {name}: path={path} must be a file, or files by split: {{train: …, test: …}}"
            )
        self.path = path
        self.images_root = images_root
        self.validation_fraction = validation_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.list_choices = list_choices
        self._splits: dict[str, FileSamples] | None = None
        self._bad: dict[str, str] | None = None

    def read_file(self, path: Path, root: Path | None) -> FileRows:
        """The rows of one file, images below `root` or the file's folder; other formats override it. DataError."""
        return read_rows(path, root)

    def samples(self, split: str) -> FileSamples:
        """Samples of a split in the order of the file, images opened when a sample is read.

        Raises DataError if a row of the file cannot be used; `readable` gives the others.
        """
        every = self._read()
        unread = {place: reason for part in every.values() for place, reason in part.skipped.items()}
        total = len(unread) + sum(len(part) for part in every.values())
        settle(unread, total, "fail", task=self.name)
        return self.readable(split)

    def readable(self, split: str) -> FileSamples:
        """See `Task.readable`; a row whose split cannot be told counts as one of train (held out: of test)."""
        if split not in SPLITS:
            raise DataError(f"task {self.name}: no split {split!r}; there are {', '.join(SPLITS)}")
        found = self._read()
        part = found[split]
        if not part:
            settle(part.skipped, len(part.skipped), "skip", task=self.name, what=f"{split} samples")
            sizes = ", ".join(f"{name} {len(found[name])}" for name in SPLITS)
            raise DataError(f"task {self.name}: {self._source()} gives no {split} samples ({sizes})")
        return part

    def fingerprint(self, split: str) -> str:
        """Digest of the split's rows, of its images' bytes, and of the way images are read."""
        return self.readable(split).fingerprint()

    def check(self, split: str, on_bad_sample: str = "fail") -> FileSamples:
        """Read the file, open every image and score every reference of it once; returns a split's usable samples.

        With "skip" the bad ones are left out, and `FileSamples.skipped` says why. Raises DataError if any
        sample of any split is bad ("fail"), or if none is left.
        """
        require_policy(on_bad_sample)
        every = self._read()
        if self._bad is None:
            self._bad = {place: reason for part in every.values() for place, reason in part.skipped.items()}
            for part in every.values():
                self._bad.update(part.bad(self.scorer))
        total = sum(len(part) + len(part.skipped) for part in every.values())
        if on_bad_sample == "fail":
            settle(self._bad, total, on_bad_sample, task=self.name)
        usable = self.readable(split).without(self._bad)
        of_split = len(usable) + len(usable.skipped)
        settle(usable.skipped, of_split, "skip", task=self.name, what=f"{split} samples")
        return usable

    def _read(self) -> dict[str, FileSamples]:
        """The splits' samples; `skipped` of each says which rows could not be read."""
        if self._splits is None:
            file = self._rows()
            rows = file.rows
            pictures = inspect_all(image for row in rows for image in row.images)
            images = clusters(rows, pictures)
            if self.held_out_fraction and rows:
                rows, images = self._share(rows, images)
            one_file = isinstance(self.path, str)
            if one_file and self.role != "target":
                own = None if self.held_out_fraction else "given"  # a share is held out as a whole
                if own is None:
                    file.split_of.clear()
                rows = [replace(row, split=(own and row.split) or "test") for row in rows]
            test = self.test_fraction if one_file else 0.0
            fractions = {"test": test, "validation": self.validation_fraction}
            found = divide(rows, images, fractions, self.split_seed)
            home = "train" if self.role == "target" else "test"
            self._splits = split_samples(file, rows, images, found, home, pictures, self.list_choices)
        return self._splits

    def content(self, splits: Sequence[str]) -> str:
        """See `Task.content`: of the whole file, since its rows and pictures decide together what is in a split."""
        return self._rows().content()

    def shared_pictures(self) -> SharedPictures:
        """See `Task.shared_pictures`: of rows whose split is given, since all others are divided by picture."""
        return shared({split: part.shown() for split, part in self._read().items()})

    def _share(self, rows: list[Row], images: list[Cluster]) -> tuple[list[Row], list[Cluster]]:
        """The rows of the images that this role has of a file that is both taught and held out."""
        drawn = assign(
            (f"held out/{image.key}" for image in images), {"test": self.held_out_fraction}, self.split_seed
        )
        mine = [(drawn[f"held out/{image.key}"] == "test") == (self.role != "target") for image in images]
        if not any(mine):
            raise DataError(
                f"task {self.name}: held_out_fraction {self.held_out_fraction} leaves no image for {self.role}"
            )
        return [r for r, own in zip(rows, mine, strict=True) if own], [
            i for i, own in zip(images, mine, strict=True) if own
        ]

    def _rows(self) -> FileRows:
        root = None if self.images_root is None else Path(self.images_root).expanduser()
        if isinstance(self.path, str):
            return self.read_file(Path(self.path).expanduser(), root)
        if not self.path or set(self.path) - set(SPLITS):
            raise ConfigError(
                f"task {self.name}: path has {', '.join(self.path or []) or 'nothing'}; give one file, or files "
                f"for {', '.join(SPLITS)}"
            )
        every = FileRows()
        for split, file in self.path.items():
            part = self.read_file(Path(file).expanduser(), root)
            part.refuse_rows(partial(_misplaced, split))
            # Validation images are cut from train's by hash where no file is given for them.
            cut = split == "train" and "validation" not in self.path
            for row in part.rows:  # an id counts within its file
                every.rows.append(row if cut and row.split is None else replace(row, split=split))
            for place, reason in part.bad.items():
                every.refuse(place, reason, split)
        return every

    def _source(self) -> str:
        return self.path if isinstance(self.path, str) else ", ".join(self.path.values())


def _misplaced(split: str, row: Row) -> str | None:
    """Why a row cannot be in the file that `path` gives for `split`."""
    odd = row.split not in (None, split)
    return f"split {row.split!r} in the file that `path` gives for {split}" if odd else None


def split_samples(
    file: FileRows,
    rows: Sequence[Row],
    images: Sequence[Cluster],
    found: Mapping[str, Sequence[int]],
    home: str,
    pictures: Mapping[Source, Inspected],
    list_choices: bool = True,
) -> dict[str, FileSamples]:
    """The samples of every split: `found` has the positions of its rows; bad ones without a split belong to `home`.

    `pictures` is what opening the rows' pictures showed.
    """
    return {
        split: FileSamples(
            [rows[i] for i in at],
            [images[i].name for i in at],
            list_choices,
            {place: reason for place, reason in file.bad.items() if file.split_of.get(place, home) == split},
            pictures=pictures,
        )
        for split, at in found.items()
    }


class FileSamples(Sequence[Sample]):
    """Samples of one split; an image is opened when its sample is read.

    `skipped` maps `file:line` of what cannot be used to "id: reason": rows that could not be read, and samples that
    `JsonlTask.check` left out. `pictures` is what opening them showed when the file was read.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        image_ids: Sequence[str],
        list_choices: bool = True,
        skipped: Mapping[str, str] | None = None,
        *,
        pictures: Mapping[Source, Inspected],
    ) -> None:
        self.rows = rows
        self.image_ids = image_ids
        self.list_choices = list_choices
        self.skipped = dict(skipped or {})
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._with(self.rows[index], self.image_ids[index], self.skipped)
        row = self.rows[index]
        try:
            return self._sample(row, self.image_ids[index], tuple(read_image(path) for path in row.images))
        except DataError as error:
            raise DataError(f"sample {row.id}: {error}") from None

    def fingerprint(self) -> str:
        """Digest of the rows, of their images' bytes (as they are now), and of the way images are read."""
        content = []
        for row in self.rows:
            meta = dict(sorted(row.meta.items()))
            pictures = [content_digest(image) or "missing" for image in row.images]
            system = [] if row.system is None else [row.system]
            content.append(
                [row.id, row.image_id, row.question, row.answers, row.choices, meta, pictures, *system]
            )
        return digest("jsonl", IMAGES_VERSION, self.list_choices, content)

    def glance(self, index: int) -> tuple[Sample, list[tuple[int, int]]]:
        """A sample without its pictures, and their sizes (upright), which are not decoded."""
        row = self.rows[index]
        return self._sample(row, self.image_ids[index], ()), [picture_size(path) for path in row.images]

    def bare(self) -> Iterator[Sample]:
        """The samples without their pictures, in order."""
        for row, image_id in zip(self.rows, self.image_ids, strict=True):
            yield self._sample(row, image_id, ())

    def bad(self, scorer: Scorer) -> dict[str, str]:
        """Open every image, score every reference; `file:line` -> "id: reason" of the bad samples."""
        found: dict[str, str] = {}
        for row, image_id in zip(self.rows, self.image_ids, strict=True):
            reasons = (self.pictures[image].reason for image in row.images)
            reason = next(filter(None, reasons), None)
            reason = reason or _unscorable(scorer, self._sample(row, image_id, ()))
            if reason:
                found[row.where] = f"{row.id}: {reason}"
        return found

    def without(self, bad: Mapping[str, str]) -> FileSamples:
        """The samples that are not in `bad`; the others are in `skipped`."""
        keep = [i for i, row in enumerate(self.rows) if row.where not in bad]
        skipped = self.skipped | {row.where: bad[row.where] for row in self.rows if row.where in bad}
        rows, image_ids = [self.rows[i] for i in keep], [self.image_ids[i] for i in keep]
        return self._with(rows, image_ids, skipped)

    def shown(self) -> dict[str, str]:
        """Digest of every picture's pixels -> id of the first sample that shows it."""
        found: dict[str, str] = {}
        for row in self.rows:
            for image in row.images:
                if (pixels := self.pictures[image].pixels) is not None:
                    found.setdefault(pixels, row.id)
        return found

    def _with(self, rows: Sequence[Row], image_ids: Sequence[str], skipped: Mapping[str, str]) -> FileSamples:
        return FileSamples(rows, image_ids, self.list_choices, skipped, pictures=self.pictures)

    def _sample(self, row: Row, image_id: str, images: tuple[Image.Image, ...]) -> Sample:
        question = listed(row.question, row.choices) if row.choices and self.list_choices else row.question
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


def _unscorable(scorer: Scorer, sample: Sample) -> str | None:
    """Why a scorer cannot be used with a sample's reference."""
    try:
        value = scorer(sample.answers[0], sample)["value"]
    except DataError as error:
        return str(error).removeprefix(f"sample {sample.id}: ")
    # annotators may disagree: then no answer of theirs reaches 1 in VQA accuracy
    return None if value else f"its own answer {sample.answers[0]!r} scores {value} of 1"
