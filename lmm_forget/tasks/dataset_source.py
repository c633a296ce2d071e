"""Open one split of a published data set with `datasets`: from the hub, or from a local copy in the same schema.

Functions import `datasets` and pyarrow, because these take seconds and tasks of local files do not need them.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.tasks.arrow_rows import ArrowRowDecoder

STREAM_BATCH_SIZE = 32
"""Rows that are decoded at a time."""
_NETWORK_ERRORS = {
    "ConnectionError",
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ConnectError",
    "TimeoutException",
    "TransportError",
}
_FULL_SHA = re.compile(r"[0-9a-f]{40}")
FILE_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class DatasetSource:
    """Where one split of a task is stored: `hub` id, `config` and `revision`, or a local `path`; `split` as published.

    Only `columns` are read. With `is_only_split` the task has no other split, so the single split of a local copy is
    used even if it has another name. `filters` are (column, value) pairs: a stream may skip rows that do not match
    them. `task_name` is for messages.
    """

    task_name: str
    hub: str | None
    split: str
    columns: tuple[str, ...]
    config: str | None = None
    revision: str | None = None
    path: str | None = None
    streaming: bool = False
    is_only_split: bool = False
    filters: tuple[tuple[str, Any], ...] = ()

    @property
    def display_name(self) -> str:
        """The name of the source in messages."""
        return str(self.path or self.hub)

    def open_split(self) -> DatasetSplit:
        """Open the split, downloading it if necessary. Raises DataError if it lacks a column or has no rows."""
        opened = DatasetSplit(self)
        features = opened.column_names
        missing = [column for column in self.columns if column not in features]
        if missing:
            raise DataError(
                f"task {self.task_name}: {self.display_name} ({self.split}) has no column {missing[0]!r}; it has "
                f"{', '.join(features)} (a renamed one goes to the task's fields)"
            )
        if not self.streaming and not len(opened):
            raise DataError(f"task {self.task_name}: {self.display_name} ({self.split}) is empty")
        return opened


class DatasetSplit:
    """The rows of an open split. Images are not decoded: a cell holds `{bytes, path}` as it is stored."""

    def __init__(self, source: DatasetSource) -> None:
        self.source = source
        self._dataset: Any = None
        self._builder: Any = None
        self._image_files: dict[str, list[str]] = {}
        self.split = source.split
        try:
            self._open_dataset()
        except DataError:
            raise
        except Exception as error:  # readers raise many types; each becomes one line
            raise explain_load_error(error, source) from error

    def _open_dataset(self) -> None:
        import datasets

        source = self.source
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        folder = None if source.path is None else Path(source.path).expanduser()
        if folder is not None and not folder.exists():
            raise DataError(f"task {source.task_name}: {source.path} is missing")
        if folder is not None and _is_saved_dataset(folder):
            self._dataset = self._load_saved_dataset(folder)
            self._files = sorted(str(file["filename"]) for file in self._dataset.cache_files)
            return
        self._builder = self._make_builder(None)
        self._check_cached_revision()
        files = self._builder.config.data_files
        # Offline, `datasets` reads its own cache, which knows splits but no files.
        self.split = self._resolve_split_name(list(files or self._builder.info.splits or []))
        self._files = [str(file) for file in files[self.split]] if files else []
        if not source.streaming:
            self._builder.download_and_prepare()
            self._dataset = self._builder.as_dataset(split=self.split)

    def _check_cached_revision(self) -> None:
        """Raise DataError if the cache lacks the requested revision: offline, `datasets` takes the newest instead."""
        requested = self.source.revision
        if (
            self.source.path is None
            and requested
            and _FULL_SHA.fullmatch(requested)
            and self._builder.hash != requested
        ):
            raise DataError(
                f"task {self.source.task_name}: revision {requested} of {self.source.display_name} is not in "
                "the cache, which has "
                f"{self._builder.hash}; it needs a network"
            )

    def _load_saved_dataset(self, folder: Path) -> Any:
        from datasets import DatasetDict, load_from_disk

        loaded = load_from_disk(str(folder))
        if isinstance(loaded, DatasetDict):
            self.split = self._resolve_split_name(list(loaded))
            return loaded[self.split]
        return loaded

    def _make_builder(self, columns: Sequence[str] | None) -> Any:
        from datasets import load_dataset_builder

        source = self.source
        if source.path is None:
            if source.hub is None:
                raise DataError(f"task {source.task_name}: neither hub nor path is given for {source.split}")
            builder = load_dataset_builder(source.hub, source.config, revision=source.revision)
        else:
            builder = self._make_local_builder(Path(source.path).expanduser())
        if hasattr(builder.config, "columns"):  # parquet: read only these columns, a few rows at a time
            if columns is not None:
                builder.config.columns = list(columns)
            if source.streaming:
                from pyarrow.dataset import ParquetFragmentScanOptions

                # By default the columns of a whole file are fetched ahead and held until its end.
                builder.config.fragment_scan_options = ParquetFragmentScanOptions(
                    pre_buffer=False, use_buffered_stream=True
                )
                builder.config.batch_size = STREAM_BATCH_SIZE
                if source.filters:
                    builder.config.filters = [(column, "==", value) for column, value in source.filters]
        return builder

    def _make_local_builder(self, path: Path) -> Any:
        """The builder of a local copy; its cache folder is named by the content of the files.

        By default `datasets` identifies a file by its name and time stamp, so it would return the cached rows of an
        earlier file for a different one with the same name and time.
        """
        from datasets import load_dataset_builder

        source = self.source
        if path.is_file():
            kind = FILE_FORMATS.get(path.suffix)
            if kind is None:
                raise DataError(
                    f"task {source.task_name}: {path} is not a {' or '.join(FILE_FORMATS)} file, nor a folder"
                )
            builder_arguments: dict[str, Any] = {"path": kind, "data_files": {source.split: [str(path)]}}
        else:
            configs = _list_dataset_configs(path)
            builder_arguments = {
                "path": str(path),
                "name": source.config if source.config in configs else None,
            }
        builder = load_dataset_builder(**builder_arguments)
        if source.streaming:
            return builder  # a stream is not cached
        files = [str(file) for part in (builder.config.data_files or {}).values() for file in part]
        card = path / "README.md"
        return load_dataset_builder(
            **builder_arguments,
            cache_dir=str(_get_cache_dir([*files, *([str(card)] if card.is_file() else [])])),
        )

    def _convert_label_filters(self, builder: Any) -> None:
        """Replace label names in the filters by their numbers, because files hold the numbers of class labels."""
        filters = getattr(builder.config, "filters", None)
        if filters:
            labels = self._row_decoder.class_labels
            builder.config.filters = [
                (column, "==", labels[column].index(value) if value in labels.get(column, ()) else value)
                for column, _, value in filters
            ]

    def _resolve_split_name(self, available: list[str]) -> str:
        requested = self.source.split
        if requested in available:
            return requested
        if self.source.is_only_split and self.source.path is not None and len(available) == 1:
            return str(available[0])
        raise DataError(
            f"task {self.source.task_name}: {self.source.display_name} has no split {requested!r}; it has "
            f"{', '.join(map(str, available))}"
        )

    @property
    def is_streamed(self) -> bool:
        """Whether rows can only be read one after the other."""
        return self._dataset is None

    @property
    def is_filtered(self) -> bool:
        """Whether the stream itself skips rows that do not match `filters` (it may then skip whole row groups)."""
        return self.is_streamed and getattr(self._builder.config, "filters", None) is not None

    @cached_property
    def column_names(self) -> list[str]:
        """The names of the split's columns."""
        return list(self._row_decoder.features if self._dataset is None else self._dataset.column_names)

    @cached_property
    def _row_decoder(self) -> ArrowRowDecoder:
        if self._dataset is not None:
            return ArrowRowDecoder(self._dataset.features)
        try:
            stream = self._builder.as_streaming_dataset(split=self.split)
            return ArrowRowDecoder(stream.features or stream._resolve_features().features)
        except Exception as error:
            raise explain_load_error(error, self.source) from error

    @property
    def class_labels(self) -> dict[str, list[str]]:
        """Column -> names of its class labels, for every column that is read and holds class labels."""
        return {name: names for name, names in self._row_decoder.class_labels.items() if name in self.source.columns}

    def resolve_label(self, column: str, value: Any) -> Any:
        """A value as `iterate_rows` returns it: the number of a class label becomes its name."""
        names = self.class_labels.get(column)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return names[value] if names is not None and is_number and 0 <= value < len(names) else value

    @property
    def revision(self) -> str:
        """The revision of the hub that is read; "local copy" for a path."""
        return "local copy" if self.source.path is not None else str(self._builder.hash)

    @cached_property
    def content_id(self) -> str:
        """Identifies the content: hub id and revision, or a digest of the local copy's files."""
        source = self.source
        if source.path is None:
            return f"{source.hub}@{self.revision}/{source.config}/{self.split}"
        return _hash_files(self._files)

    def __len__(self) -> int:
        if self._dataset is not None:
            return len(self._dataset)
        return self._streamed_row_count

    @cached_property
    def _streamed_row_count(self) -> int:
        return sum(1 for _ in self.iterate_rows(self.source.columns[:1]))

    @cached_property
    def _arrow_dataset(self) -> Any:
        return self._dataset.select_columns(list(self.source.columns)).with_format("arrow")

    def list_image_files(self, column: str) -> list[str]:
        """Names of image files, each once, that the rows refer to but do not contain; empty for a stream."""
        if self._dataset is None:
            return []
        if column not in self._image_files:
            batches = self._dataset.select_columns([column]).with_format("arrow").iter(STREAM_BATCH_SIZE)
            names = (
                name for part in batches for chunk in part.column(column).chunks for name in _iterate_image_paths(chunk)
            )
            self._image_files[column] = list(dict.fromkeys(names))
        return self._image_files[column]

    def read_row(self, index: int) -> dict[str, Any]:
        """One row, column name -> value; a cell that cannot be read becomes `UnreadableCell`. Raises DataError."""
        return self._row_decoder.decode_rows(self._arrow_dataset[index])[0]

    def iterate_rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """All rows in order, with all or only these columns; a cell that cannot be read becomes `UnreadableCell`."""
        selected = list(columns or self.source.columns)
        try:
            if self._dataset is not None:
                tables = self._dataset.select_columns(selected).with_format("arrow").iter(STREAM_BATCH_SIZE)
            else:
                builder = self._make_builder(selected)
                stream = builder.as_streaming_dataset(split=self.split)
                self._convert_label_filters(builder)
                tables = stream.select_columns(selected).with_format("arrow").iter(STREAM_BATCH_SIZE)
            for table in tables:
                yield from self._row_decoder.decode_rows(table)
        except DataError:
            raise
        except Exception as error:
            raise explain_load_error(error, self.source) from error


def _get_cache_dir(files: Sequence[str]) -> Path:
    """The cache folder of `datasets` for local files with this content."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "by-content" / _hash_files(files)[:32]


def _iterate_image_paths(column: Any) -> Iterator[str]:
    """The paths in a column of images or of lists of images; cells `{bytes, path}` count only without bytes."""
    import pyarrow as pa

    arrow_type = column.type
    if pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type):
        yield from _iterate_image_paths(column.flatten())
    elif pa.types.is_struct(arrow_type) and {"bytes", "path"} <= {field.name for field in arrow_type}:
        yield from _iterate_image_paths(column.field("path").filter(column.field("bytes").is_null()))
    elif pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type):
        yield from (name for name in column.to_pylist() if name)


def _hash_files(files: Sequence[str]) -> str:
    """Digest of the content of files in this order."""
    return hashlib.sha256(b"".join(_hash_file(file, _read_file_stat(file)) for file in files)).hexdigest()


@lru_cache(maxsize=4096)
def _hash_file(file: str, _stat: tuple[int, ...]) -> bytes:
    """Digest of a file's content. This process caches it as long as `_stat` of the file stays the same."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").digest()


def _read_file_stat(file: str) -> tuple[int, ...]:
    """File metadata that changes with the content. Unlike the modification time, the inode's time cannot be set."""
    stat = Path(file).stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _is_saved_dataset(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _list_dataset_configs(folder: Path) -> list[str]:
    """The configurations that a local folder's README declares."""
    from datasets import get_dataset_config_names

    return list(get_dataset_config_names(str(folder)))


def explain_load_error(error: Exception, source: DatasetSource) -> DataError:
    """Turn an exception of `datasets`, the hub client or a file reader into a DataError of one line."""
    chain = _list_exception_chain(error)
    text = " | ".join(f"{type(exception).__name__}: {exception}" for exception in chain)
    class_names = {cls.__name__ for exception in chain for cls in type(exception).__mro__}
    prefix = f"task {source.task_name}: {source.display_name}"
    if "RevisionNotFoundError" in class_names or re.search(
        r"[Ii]nvalid rev id|Revision Not Found|doesn't exist on the Hub.*revision", text
    ):
        return DataError(f"{prefix} has no revision {source.revision!r}; revision=null takes the newest")
    if "GatedRepoError" in class_names:
        return DataError(f"{prefix} needs access: accept its terms on the hub, then `hf auth login`")
    if source.path is None and class_names & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return DataError(f"{prefix} is not on the hub (or not for you to read); check the id, or `hf auth login`")
    if source.path is None and class_names & _NETWORK_ERRORS:
        return DataError(
            f"{prefix} cannot be reached (no network, and it is not in the cache); "
            f"a local copy in the same schema goes to +tasks.{source.task_name}.path"
        )
    config = re.search(r"BuilderConfig '.*' not found. Available: (\[.*?\])", text)
    if config:
        return DataError(f"{prefix} has no config {source.config!r}; it has {config.group(1)}")
    if "corresponds to no data" in text:
        return DataError(f"{prefix} ({source.split}) is empty")
    if class_names & {"EmptyDatasetError", "DataFilesNotFoundError"} or "any data file" in text:
        return DataError(f"{prefix} holds no parquet or arrow files")
    deepest = chain[-1]
    reason = " ".join(str(deepest).split()) or type(deepest).__name__
    return DataError(f"{prefix} ({source.split}) cannot be read: {reason[:300]}")


def _list_exception_chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain
