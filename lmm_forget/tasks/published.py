"""A published data set as a task: opened with `datasets`, read row by row, checked before work starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.tasks.bad_samples import require_policy, settle
from lmm_forget.tasks.base import SPLITS, Sample, SharedPictures, Task, digest
from lmm_forget.tasks.cells import Cells
from lmm_forget.tasks.choices import listed
from lmm_forget.tasks.clusters import Shown, assign, clusters, clusters_of, divide, image_ids, shared
from lmm_forget.tasks.images import VERSION as IMAGES_VERSION
from lmm_forget.tasks.images import Source as Picture
from lmm_forget.tasks.images import content_digest, image_hash, inspect_all, name_of, source_of
from lmm_forget.tasks.jsonl import FileSamples, split_samples
from lmm_forget.tasks.rows import FileRows
from lmm_forget.tasks.source import Source, Table
from lmm_forget.tasks.values import Unreadable, text_of

VERSION = 2
"""Of the way rows become samples; raised when the same rows give other samples."""
FIELDS = ("question", "answer", "answers", "image", "choices", "system", "id", "image_id")
"""What `fields` can map to columns."""
SCAN_CHUNK = 64
"""Rows whose images are opened at a time when a split is checked."""


@dataclass(frozen=True)
class Reading:
    """What a row says beside its pictures; see `Sample`."""

    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class HubTask(Task):
    """Questions from a data set on the Hugging Face hub, or from a local copy in the same schema.

    `hub`, `config` and `revision` name it there (`revision` null: the newest; the one that was read is recorded);
    `path` is a copy instead (a `save_to_disk` folder, a parquet or arrow file, or a folder of them such as a
    downloaded repository), or a mapping from splits to copies. `splits` maps train, validation and test to the
    published splits' names. `fields` maps what is read to columns: `question`, `answer` or `answers`, `image`
    (one picture or a list), optionally `choices` (a list column, or several columns), `system` (the system prompt),
    `id`, `image_id`; without an `id` a sample is called by its row. Pictures are the same when their pixels are; an
    `image_id` joins more of them. Pictures that a row only names lie below `images_root`. Values become text by the
    rules of `values.text_of`, class labels their names. `meta` lists columns that go to `Sample.meta`. `where` keeps
    only rows with these values (column -> value). `streaming` reads evaluation splits one row after the other and
    stores nothing.

    A target without a validation split sets `validation_fraction` of its training images apart, by the hash of their
    image id, or else of their content, with `split_seed`. Rows, images and scores are checked by `check`. `asked` are
    the prefixes, suffixes and `macro` of every `Task`.

    Subclasses override `read` (row -> question, answers) where a data set needs more than its columns, and
    `taught_rows` where training comes from files.
    """

    reads: tuple[str, ...] = ("question",)
    """Fields that a subclass's `read` cannot do without."""
    also_reads: tuple[str, ...] = ()
    """Fields of a subclass beside those that `FIELDS` lists."""

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
        **asked: Any,
    ) -> None:
        super().__init__(name=name, role=role, **asked)
        odd = sorted(set(splits) - set(SPLITS))
        if odd or not splits:
            raise ConfigError(
                f"task {name}: splits has {', '.join(odd) or 'nothing'}; it maps {', '.join(SPLITS)}"
            )
        lacking = [one for one in self.reads if fields.get(one) is None]
        if lacking:
            raise ConfigError(
                f"task {name}: fields gives no column for {lacking[0]!r}; it has {', '.join(fields)}"
            )
        known = (*FIELDS, *self.also_reads)
        unknown = [one for one in fields if one not in known]
        if unknown:
            raise ConfigError(
                f"task {name}: fields has {unknown[0]!r}; it maps {', '.join(known)} to columns"
            )
        if fields.get("answer") is not None and fields.get("answers") is not None:
            raise ConfigError(f"task {name}: fields has both 'answer' and 'answers'; give one of them")
        if not 0 <= validation_fraction < 1:
            raise ConfigError(
                f"task {name}: validation_fraction {validation_fraction} must be from 0 to below 1"
            )
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
        self._tables: dict[str, Table] = {}
        self._parts: dict[str, HubSamples | FileSamples] = {}
        self._taught: dict[str, FileSamples] | None = None
        self._bad: dict[str, dict[str, str]] = {}
        self._scanned: dict[str, HubSamples | FileSamples] = {}
        self._shown: dict[str, dict[str, str]] = {}
        self._train: dict[str, list[int]] | None = None

    # --- what a subclass may say -----------------------------------------------------------------------------

    def read(self, cells: Cells, split: str) -> Reading:
        """Question, references, options and meta of one row of a split. Raises DataError without the sample's id."""
        answers = cells.texts("answers" if "answers" in cells else "answer")
        choices = cells.texts("choices") if "choices" in cells else None
        question = cells.question()
        return Reading(listed(question, choices) if choices else question, answers, choices, self.kept(cells))

    def taught_rows(self) -> FileRows | None:
        """Rows of a target's training (and validation) files; None where the data set itself has them."""
        return None

    # --- the task -------------------------------------------------------------------------------------------

    def kept(self, cells: Cells) -> dict[str, Any]:
        """The columns of `meta`, as they are stored. Raises DataError for one that cannot be read."""
        found = {column: cells.row.get(column) for column in self.meta}
        for column, value in found.items():
            if isinstance(value, Unreadable):
                raise DataError(f"{column!r} {value}")
        return found

    def samples(self, split: str) -> HubSamples | FileSamples:
        """The split's samples; pictures are opened when a sample is read.

        Raises DataError if there is no such split, or if a row of a training file cannot be used.
        """
        part = self.readable(split)
        if isinstance(part, FileSamples):
            total = len(part) + len(part.skipped)
            settle(part.skipped, total, "fail", task=self.name, what=f"{split} samples")
        return part

    def readable(self, split: str) -> HubSamples | FileSamples:
        """See `Task.readable`; the rows of a data set are only read, and looked at, when they are needed."""
        if split not in SPLITS:
            raise DataError(f"task {self.name}: no split {split!r}; there are {', '.join(SPLITS)}")
        if split not in self._parts:
            self._parts[split] = self._part(split)
        return self._parts[split]

    def fingerprint(self, split: str) -> str:
        """Digest of the published revision (or of a copy's content) and of the way its rows are read."""
        part = self.readable(split)
        if isinstance(part, FileSamples):
            return part.fingerprint()
        read = [type(self).__qualname__, self.fields, self.where, self.meta]
        read += [[content_digest(picture) or "missing" for picture in self._named(part.table)]]
        if part.table.labels:
            read.append(part.table.labels)
        cut = [self.validation_fraction, self.split_seed] if part.cut else []
        return digest("hub", VERSION, IMAGES_VERSION, part.table.identity, read, cut, split if cut else "")

    def _named(self, table: Table) -> list[Picture]:
        """The pictures that the rows only name; what they hold is not part of the table's identity."""
        names = table.image_files(self.fields["image"]) if "image" in self.fields else ()
        return [source_of(name, self.images_root or Path()) for name in names]

    def check(self, split: str, on_bad_sample: str = "fail") -> HubSamples | FileSamples:
        """Open every image and score every reference of the split once; returns the usable samples.

        A streamed split is looked at as it is read, unless bad samples are to be skipped. With "skip" the bad ones are
        left out, and `skipped` of the result says why. Raises DataError if a sample is bad ("fail"), or if none is
        left.
        """
        require_policy(on_bad_sample)
        return self.usable(self.readable(split), split, on_bad_sample)

    def usable(
        self, part: HubSamples | FileSamples, split: str, on_bad_sample: str
    ) -> HubSamples | FileSamples:
        """What `check` gives, for a part of a split: only its samples are opened."""
        bad = dict(part.skipped)
        streamed = isinstance(part, HubSamples) and part.table.streamed
        # Under "fail" a stream is looked at as it is read: fetching it only for that would double what is fetched.
        if not streamed or on_bad_sample == "skip":
            key = digest(split, [str(number) for number in part.rows] if isinstance(part, HubSamples) else [])
            if key not in self._bad:
                self._bad[key] = part.bad(self.scorer)
                self._scanned[key] = part
            elif isinstance(part, HubSamples):
                part.take(self._scanned[key])
            bad |= self._bad[key]
            self._shown.setdefault(split, {}).update(part.shown())
        total = len(part) + len(part.skipped)
        settle(bad, total, on_bad_sample, task=self.name, what=f"{split} samples")
        return part.without(bad)

    def content(self, splits: Sequence[str]) -> str | None:
        """See `Task.content`: of copies and training files; None where all splits come from the hub."""
        found: list[Any] = []
        for split in splits:
            if split != "test" and "train" not in self.splits:
                file = self.taught_rows()
                found.append(None if file is None else file.content())
                continue
            published = split if split in self.splits else "train"
            path = self.path.get(published) if isinstance(self.path, Mapping) else self.path
            if path is not None:
                table = self._table(published)
                found.append([table.identity, [content_digest(picture) for picture in self._named(table)]])
        return digest(found) if found else None

    def shared_pictures(self) -> SharedPictures:
        """See `Task.shared_pictures`; a streamed split, which is not read before its time, is not looked at."""
        return shared(self._shown)

    def provenance(self) -> dict[str, str]:
        """Hub id and revision of every split that was opened, or "local copy"."""
        return {
            split: f"{self.hub}@{table.revision}" if table.source.path is None else "local copy"
            for split, table in self._tables.items()
        }

    def sample_id(self, row: Mapping[str, Any], split: str, number: int) -> str:
        """The id of a row: its `id` column, else (or where that holds no text) `<split>-<row>`."""
        try:
            return text_of(row.get(self.fields["id"]), "") if "id" in self.fields else f"{split}-{number}"
        except DataError:
            return f"{split}-{number}"

    def sample(self, row: Mapping[str, Any], split: str, number: int, *, pictures: bool = True) -> Sample:
        """The sample of one stored row, without its pictures if they are not wanted. Raises DataError with its id."""
        cells = Cells(row, self.fields, self.images_root)
        name, system = self.sample_id(row, split, number), ""
        try:
            if "id" in cells:
                cells.text("id")
            reading = self.read(cells, split)
            system = cells.optional("system")
            images = cells.images() if pictures else ()
            image_id = cells.text("image_id") if "image_id" in cells else ""
            if not image_id and pictures:
                image_id = cells.image_name() if "image" in cells else name
        except DataError as error:
            raise DataError(f"sample {name}: {error}") from None
        return Sample(
            name,
            image_id,
            images,
            reading.question,
            reading.answers,
            reading.choices,
            reading.meta,
            system or None,
        )

    def columns(self, *, pictures: bool = True) -> tuple[str, ...]:
        """The columns that are read."""
        wanted: list[str] = []
        for meaning, column in self.fields.items():
            if pictures or meaning != "image":
                wanted += [column] if isinstance(column, str) else list(column)
        return tuple(dict.fromkeys([*wanted, *self.meta, *self.where]))

    # --- splits ---------------------------------------------------------------------------------------------

    def _part(self, split: str) -> HubSamples | FileSamples:
        if split != "test" and "train" not in self.splits:
            files = self._files().get(split)
            if files is None or not (files or files.skipped):
                raise self._no(split, "" if self.role == "target" else "; it is not taught")
            return files
        if split in self.splits and not (split == "train" and self._cuts()):
            return HubSamples(self, self._table(split), split)
        if split == "test" or not self._cuts():
            raise self._no(
                split, "; a target's validation_fraction cuts one" if split == "validation" else ""
            )
        return self._cut(split)

    def _cuts(self) -> bool:
        return self.role == "target" and "validation" not in self.splits and self.validation_fraction > 0

    def _no(self, split: str, hint: str) -> DataError:
        return DataError(f"task {self.name}: no {split} samples; it has {', '.join(self.splits)}{hint}")

    def _files(self) -> dict[str, FileSamples]:
        if self._taught is None:
            file = self.taught_rows() if self.role == "target" else None
            if file is None:
                return {}
            pictures = inspect_all(image for row in file.rows for image in row.images)
            images = clusters(file.rows, pictures)
            own = any(row.split for row in file.rows)
            fractions = {} if own else {"validation": self.validation_fraction}
            found = divide(file.rows, images, fractions, self.split_seed)
            self._taught = split_samples(file, file.rows, images, found, "train", pictures)
        return self._taught

    def _cut(self, split: str) -> HubSamples:
        """Train or validation of a published train split, every image in one of them."""
        table = self._table("train")
        if self._train is None:
            self._train = self._divided(table)
        return HubSamples(self, table, "train", self._train[split], cut=True)

    def _divided(self, table: Table) -> dict[str, list[int]]:
        """The rows of train and validation."""
        kept = _kept(self, table)
        wanted = kept if isinstance(kept, range) else set(kept)
        columns = [self.fields[field] for field in ("id", "image_id", "image") if field in self.fields]
        rows = (
            (number, row)
            for number, row in enumerate(table.rows(columns or self.columns()))
            if number in wanted
        )
        numbers: list[int] = []
        found: list[Shown] = []
        known: dict[str, str] = {}
        while chunk := list(islice(rows, SCAN_CHUNK)):
            named = [self._sources(row) for _, row in chunk]
            pictures = inspect_all((source for one in named for source in one.values()), known)
            for (number, row), sources in zip(chunk, named, strict=True):
                numbers.append(number)
                given = self._image_id(row)
                found.append(Shown.of(self.sample_id(row, "train", number), given, sources, pictures))
        groups = clusters_of(found)
        fractions = {"validation": self.validation_fraction}
        drawn = assign((group.key for group in groups), fractions, self.split_seed)
        parts: dict[str, list[int]] = {"train": [], "validation": []}
        for number, group in zip(numbers, groups, strict=True):
            parts[drawn[group.key]].append(number)
        return parts

    def _image_id(self, row: Mapping[str, Any]) -> str | None:
        """The row's own image id; None without one, or where the row is one of those that cannot be used."""
        cells = Cells(row, self.fields)
        try:
            return cells.optional("image_id") or None
        except DataError:
            return None

    def _sources(self, row: Mapping[str, Any]) -> dict[str, Picture]:
        """The row's pictures by their names; none where the row is one of those that cannot be used."""
        try:
            sources = Cells(row, self.fields, self.images_root).sources()
        except DataError:
            return {}
        return {name_of(source, self.images_root or Path()): source for source in sources}

    def _table(self, split: str) -> Table:
        if split not in self._tables:
            path = self.path.get(split) if isinstance(self.path, Mapping) else self.path
            source = Source(
                task=self.name,
                hub=self.hub,
                split=self.splits[split],
                columns=self.columns(),
                config=self.config,
                revision=self.revision,
                path=None if path is None else str(path),
                streaming=self.streaming and split == "test",
                where=tuple(self.where.items()),
                only=len(self.splits) == 1 or isinstance(self.path, Mapping),
            )
            self._tables[split] = source.open()
        return self._tables[split]


@dataclass(frozen=True)
class Opened:
    """What opening a sample showed: its id, the image id of its row alone, and digests of its pictures' pixels."""

    id: str
    image_id: str
    pixels: tuple[str, ...]


class HubSamples(Sequence[Sample]):
    """Samples of one split; a picture is opened when its sample is read.

    `rows` are the rows of the table that belong to it (None: all that `where` keeps); `skipped` maps a row's number
    to "id: reason" for what `HubTask.check` left out. A streamed split keeps its place: reading on is cheap, reading
    an earlier sample starts over.
    """

    def __init__(
        self,
        task: HubTask,
        table: Table,
        split: str,
        rows: Sequence[int] | None = None,
        *,
        cut: bool = False,
    ) -> None:
        self.task, self.table, self.split, self.cut = task, table, split, cut
        self.rows = _kept(task, table) if rows is None else rows
        self.skipped: dict[str, str] = {}
        self.opened: dict[int, Opened] = {}
        self.image_ids: dict[int, str] = {}
        self._stream: Iterator[tuple[int, dict[str, Any]]] | None = None
        self._next = 0
        if not len(self.rows):
            why = f"has no rows where {task.where}" if task.where else "is empty"
            raise DataError(f"task {task.name}: {table.source.name} ({table.split}) {why}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._with(self.rows[index], self.skipped)
        return self.made(self.stored(index))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None, "_next": 0}  # a worker process opens its own stream

    @property
    def in_order(self) -> bool:
        """Whether samples can only be read one after the other."""
        return self.table.streamed

    def stored(self, index: int) -> tuple[int, dict[str, Any]]:
        """A sample's row as it is stored: all that `made` needs, wherever that is done."""
        number = self.rows[index]
        return number, self._row(number)

    def made(self, stored: tuple[int, dict[str, Any]]) -> Sample:
        """The sample of what `stored` gave, its pictures decoded. Raises DataError with its id."""
        number, row = stored
        sample = self.task.sample(row, self.split, number)
        return replace(sample, image_id=self.image_ids.get(number, sample.image_id))

    def glance(self, index: int) -> tuple[Sample, list[tuple[int, int]]]:
        """A sample without its pictures, and their sizes (upright), which are not decoded."""
        number, row = self.stored(index)
        sample = self.task.sample(row, self.split, number, pictures=False)
        return sample, Cells(row, self.task.fields, self.task.images_root).sizes()

    def bare(self) -> Iterator[Sample | DataError]:
        """The samples without their pictures, in order, or why one cannot be read; only these columns are read."""
        wanted = set(self.rows)
        columns = self.task.columns(pictures=False)
        for number, row in enumerate(self.table.rows(columns)):
            if number in wanted:
                try:
                    yield self.task.sample(row, self.split, number, pictures=False)
                except DataError as error:
                    yield error

    def bad(self, scorer: Callable[[str, Sample], Mapping[str, Any]]) -> dict[str, str]:
        """Open every picture, score every reference; row number -> "id: reason" of the bad samples."""
        found: dict[str, str] = {}
        seen: dict[str, int] = {}
        wanted = set(self.rows)

        def one(item: tuple[int, dict[str, Any]]) -> str | None:
            number, row = item
            try:
                sample = self.task.sample(row, self.split, number)
                pixels = tuple(image_hash(image) for image in sample.images)
                self.opened[number] = Opened(sample.id, sample.image_id, pixels)
                scorer(self.task.target(sample), sample)
            except DataError as error:
                return str(error).removeprefix("sample ")
            return None

        if not self.table.streamed and len(wanted) < len(self.table) // 2:
            rows = ((number, self._row(number)) for number in self.rows)
        else:
            rows = ((number, row) for number, row in enumerate(self.table.rows()) if number in wanted)
        self.opened = {}  # a part of these samples may share the dictionary
        with ThreadPoolExecutor() as pool:
            while chunk := list(islice(rows, SCAN_CHUNK)):
                for (number, row), reason in zip(chunk, pool.map(one, chunk), strict=True):
                    name = self.task.sample_id(row, self.split, number)
                    first = seen.setdefault(name, number)
                    if reason is None and first != number:
                        reason = f"{name}: the id of row {first} again (row {number})"
                    if reason is not None:
                        found[str(number)] = reason
        opened = self.opened.values()
        ids = image_ids([one.image_id for one in opened], [one.pixels for one in opened])
        self.image_ids = dict(zip(self.opened, ids, strict=True))
        return found

    def take(self, other: HubSamples | FileSamples) -> None:
        """Know what `bad` found when it opened the same samples."""
        if isinstance(other, HubSamples):
            self.opened, self.image_ids = other.opened, other.image_ids

    def shown(self) -> dict[str, str]:
        """Digest of every picture's pixels -> id of the first sample that shows it, when `bad` has opened them."""
        found: dict[str, str] = {}
        for number in sorted(self.opened):
            for pixels in self.opened[number].pixels:
                found.setdefault(pixels, self.opened[number].id)
        return found

    def without(self, bad: Mapping[str, str]) -> HubSamples:
        """The samples that are not in `bad`; the others are in `skipped`."""
        if not bad:
            return self
        skipped = self.skipped | {str(number): bad[str(number)] for number in self.rows if str(number) in bad}
        return self._with([number for number in self.rows if str(number) not in bad], skipped)

    def picked(self, places: Sequence[int], left_out: Mapping[int, str] | None = None) -> HubSamples:
        """The samples at some places of this part; `left_out` says by place what else cannot be used, and why."""
        more = {str(self.rows[place]): reason for place, reason in (left_out or {}).items()}
        return self._with([self.rows[place] for place in places], self.skipped | more)

    def _with(self, rows: Sequence[int], skipped: Mapping[str, str]) -> HubSamples:
        other = HubSamples.__new__(HubSamples)
        other.__dict__.update(self.__dict__, rows=rows, skipped=dict(skipped), _stream=None, _next=0)
        return other

    def _row(self, number: int) -> dict[str, Any]:
        if not self.table.streamed:
            return self.table.row(number)
        if self._stream is None or number < self._next:
            self._stream, self._next = enumerate(self.table.rows()), 0
        for at, row in self._stream:
            self._next = at + 1
            if at == number:
                return row
        raise DataError(f"task {self.task.name}: {self.table.source.name} ended before row {number}")


def _kept(task: HubTask, table: Table) -> Sequence[int]:
    """The rows that `where` keeps; a class label can be given by its name or by its number."""
    if not task.where or table.filtered:
        return range(len(table))
    columns = list(task.where)
    wanted = {column: table.label(column, value) for column, value in task.where.items()}
    return [
        number
        for number, row in enumerate(table.rows(columns))
        if all(row.get(column) == value for column, value in wanted.items())
    ]
