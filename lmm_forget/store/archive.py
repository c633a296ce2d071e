"""The archive of finished stages: one folder per stage, complete or absent, every byte of it covered by a checksum.

    <store>/stages/<key>/record.json         what the stage was and gave, under its own checksum
    <store>/stages/<key>/delta.safetensors   the tensors it moved, in the base checkpoint's dtype; hashes in the record
    <store>/stages/<key>/method_state.safetensors   what its method hands on to the next stage, if anything
    <store>/stages/<key>/snapshot.safetensors       every tensor, where snapshot=full found the stage with a delta
    <store>/answers/<model>/                 what a model said, see response_cache.py
    <store>/partial/<key>/                   states of stages in training, see stage_checkpoints.py
    <store>/probes/                          what probes saw, see probe_cache.py
    <store>/measured/                        micro-batches that were measured, see measurements.py
    <store>/paths/<path>.json                which stage a configuration led to, for planning only
    <store>/claims/                          who works on what, see leases.py
    <store>/damaged/                         what failed its checksum: moved here, never used

Leases only avoid double work; results are correct because a stage is committed by a rename that the first writer wins.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import StoreError
from lmm_forget.files import (
    apply_default_permissions,
    dump_json_with_checksum,
    fsync_path,
    load_json_with_checksum,
    write_atomic,
)
from lmm_forget.store.leases import LeaseManager

if TYPE_CHECKING:
    from torch import Tensor

    from lmm_forget.models.low_rank import LowRankUpdate

RECORD_SCHEMA = 3
RECORD_FILE, DELTA_FILE = "record.json", "delta.safetensors"
METHOD_STATE_FILE, SNAPSHOT_FILE = "method_state.safetensors", "snapshot.safetensors"
STAGES_FOLDER, PATHS_FOLDER, QUARANTINE_FOLDER, LEASES_FOLDER = "stages", "paths", "damaged", "claims"
RESERVED_BYTES = 64 * 2**20
"""Free bytes that a store must have beyond a stage's own size when the stage begins: records, answers, headers."""


class CorruptEntryError(StoreError):
    """An entry of the store is damaged; it has been moved aside and must be computed again."""


class Store:
    """The archive in the folder `root`, which is created with the first entry; methods raise StoreError.

    `warn` is called with one line for everything that is found damaged.
    """

    def __init__(self, root: str | os.PathLike[str], warn: Callable[[str], None] | None = None) -> None:
        self.root = Path(root)
        self.leases = LeaseManager(self.root / LEASES_FOLDER)
        self.note = warn or (lambda line: None)

    def find_record(self, key: str) -> dict[str, Any] | None:
        """The record of a stage; None if the stage is not finished, or was damaged and has now been moved aside."""
        path = self.get_stage_folder(key) / RECORD_FILE
        try:
            return self.read_record(key)
        except FileNotFoundError:
            if path.parent.is_dir():
                self.quarantine(path.parent, f"{path.parent} has no {RECORD_FILE}")
            return None
        except PermissionError as error:
            raise StoreError(f"{path} cannot be read ({error.strerror})") from error
        except (OSError, ValueError) as error:
            self.quarantine(path.parent, f"{path} is damaged: {error}")
            return None

    def read_record(self, key: str) -> dict[str, Any]:
        """Read a record without repair. Raises FileNotFoundError if there is none, ValueError if it is damaged."""
        record = load_json_with_checksum((self.get_stage_folder(key) / RECORD_FILE).read_text(encoding="utf-8"))
        if record.get("schema") != RECORD_SCHEMA:
            raise ValueError(f"its schema is {record.get('schema')}, this version reads {RECORD_SCHEMA}")
        if record.get("key") != key:
            raise ValueError(f"it belongs to {record.get('key')}")
        return record

    def load_delta(self, key: str) -> dict[str, Tensor]:
        """All tensors that a stage moved, see `iterate_delta_tensors`."""
        return dict(self.iterate_delta_tensors(key))

    def iterate_delta_tensors(
        self,
        key: str,
        names: Collection[str] | None = None,
        base_tensors: Mapping[str, Tensor] | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """The tensors that a stage moved (those in `names`; default all), one by one, each checked.

        `base_tensors` are those before the stage, by name: a low-rank entry of the delta is added to its own when its
        turn comes. Raises StoreError where one is needed and missing, and CorruptEntryError, after the stage was moved
        aside, if anything is not what its record says.
        """
        from lmm_forget.store.delta_file import read_delta_tensors  # imports torch

        path = self.get_stage_folder(key) / DELTA_FILE
        record = self._require_record(key)
        for name in sorted(record.get("lowrank") or ()):
            if (names is None or name in names) and name not in (base_tensors or ()):
                raise StoreError(
                    f"{path}: {name} is a low-rank change of the tensor before the stage, which is needed to read it"
                )
        with self._quarantine_on_damage(path):
            yield from read_delta_tensors(path, record, names, base_tensors or {})

    def load_method_state(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """(tensors, values) that the stage's method hands on; None where it hands on nothing.

        Raises CorruptEntryError, after the stage was moved aside, if they are not what its record says.
        """
        path = self.get_stage_folder(key) / METHOD_STATE_FILE
        digest = self._require_record(key).get("method_state")
        if digest is None:
            return None
        with self._quarantine_on_damage(path):
            return read_method_state(path, digest)

    def has_full_model(self, record: Mapping[str, Any], names: Collection[str]) -> bool:
        """Whether a stage's folder holds all tensors in `names`: in its delta, or in a snapshot beside it."""
        is_whole = set(record["tensors"]) >= set(names) and not record.get("lowrank")
        return is_whole or (self.get_stage_folder(record["key"]) / SNAPSHOT_FILE).exists()

    def add_snapshot(self, key: str, weights_hash: str, tensors: Mapping[str, Tensor]) -> None:
        """File every tensor of a stage's model beside its delta. Raises StoreError."""
        from lmm_forget.store.checked_tensors import write_checked_tensors  # imports torch

        path = self.get_stage_folder(key) / SNAPSHOT_FILE
        with self.wrap_write_errors(path):
            write_checked_tensors(path, {"weights_hash": weights_hash}, tensors, durable=True)

    def _require_record(self, key: str) -> dict[str, Any]:
        record = self.find_record(key)
        if record is None:
            raise CorruptEntryError(
                f"stage {key} is not in the store {self.root} any more; the same command computes it again"
            )
        return record

    @contextmanager
    def _quarantine_on_damage(self, path: Path) -> Iterator[None]:
        """Move the stage aside if one of its files, which the block reads, is not what was written."""
        from safetensors import SafetensorError

        try:
            yield
        except PermissionError as error:
            raise StoreError(f"{path} cannot be read ({error.strerror})") from error
        except (OSError, ValueError, SafetensorError) as error:
            raise CorruptEntryError(self.quarantine(path.parent, f"{path} is damaged: {error}")) from None

    def commit_stage(
        self,
        key: str,
        record: Mapping[str, Any],
        delta: Mapping[str, Tensor | LowRankUpdate],
        method_state: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None,
    ) -> None:
        """File a finished stage; if somebody else filed it in the meantime, theirs stays.

        `record["tensors"]` holds the hash of every tensor that `delta` leads to. `method_state` (tensors, JSON values)
        is what the stage's method hands on; its digest becomes `record["method_state"]`.
        """
        from lmm_forget.models.weight_hashes import hash_state  # imports torch, as do the next two
        from lmm_forget.store.checked_tensors import write_checked_tensors
        from lmm_forget.store.delta_file import write_delta

        final = self.get_stage_folder(key)
        draft = final.with_name(f".{key}.{secrets.token_hex(8)}")
        with self.wrap_write_errors(draft):
            try:
                draft.mkdir(parents=True)
                content = {**record, "schema": RECORD_SCHEMA, "key": key}
                low_rank = write_delta(draft / DELTA_FILE, delta)
                if low_rank:
                    content["lowrank"] = low_rank
                apply_default_permissions(draft / DELTA_FILE)
                fsync_path(draft / DELTA_FILE)
                if method_state is not None:
                    tensors, values = method_state
                    content["method_state"] = hash_state(tensors, values)
                    write_checked_tensors(draft / METHOD_STATE_FILE, values, tensors, durable=True)
                (draft / RECORD_FILE).write_text(dump_json_with_checksum(content), encoding="utf-8")
                fsync_path(draft / RECORD_FILE)
                fsync_path(draft)
                try:
                    draft.rename(final)
                except OSError:
                    if not (final / RECORD_FILE).exists():
                        raise
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            fsync_path(final.parent)

    def find_cached_stage_key(self, config_key: str, input_fingerprints: Mapping[str, str] | None = None) -> str | None:
        """The key of the stage that a chain of configurations led to last time; a hint for planning, not a proof.

        With `input_fingerprints`, only if the stage was made from inputs with these fingerprints.
        """
        with suppress(OSError, ValueError, KeyError, TypeError):
            hint = load_json_with_checksum(
                (self.root / PATHS_FOLDER / f"{config_key}.json").read_text(encoding="utf-8")
            )
            if input_fingerprints is None or hint.get("inputs", {}) == dict(input_fingerprints):
                return str(hint["stage"])
        return None

    def cache_stage_key(
        self, config_key: str, stage_key: str, input_fingerprints: Mapping[str, str] | None = None
    ) -> None:
        """Remember the key of the stage that a chain of configurations led to, and its inputs' fingerprints."""
        if self.find_cached_stage_key(config_key, input_fingerprints or {}) != stage_key:
            path = self.root / PATHS_FOLDER / f"{config_key}.json"
            with self.wrap_write_errors(path):
                hint = {"stage": stage_key, "inputs": dict(input_fingerprints or {})}
                write_atomic(path, dump_json_with_checksum(hint, indent=None), durable=False)

    @contextmanager
    def acquire_lease(
        self, name: str, *, wait: bool = True, on_wait: Callable[[str], None] | None = None
    ) -> Iterator[bool]:
        """Hold the lease `name` during the with block; yields whether it is held. See `LeaseManager.acquire`."""
        lease = self.leases.acquire(name, wait=wait, on_wait=on_wait)
        with self.wrap_write_errors(self.root / LEASES_FOLDER):
            is_held = lease.__enter__()
        try:
            yield is_held
        finally:
            lease.__exit__(None, None, None)

    def quarantine(self, path: Path, reason: str) -> str:
        """Move a damaged entry aside, warn, and return the warning."""
        target = self.root / QUARANTINE_FOLDER / f"{path.parent.name}-{path.name}-{secrets.token_hex(4)}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        except FileNotFoundError:
            line = f"{reason}; somebody else has moved it aside"
        except OSError as error:
            raise StoreError(
                f"{reason}; it cannot be moved aside ({error.strerror}): "
                "make the store writable or choose another one with store=FOLDER"
            ) from error
        else:
            line = f"{reason}; moved to {target}"
        self.note(line)
        return line

    def require_free_space(self, needed_bytes: int, purpose: str) -> None:
        """Raise StoreError unless the store's disk has `needed_bytes` and `RESERVED_BYTES` free."""
        existing = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(existing).free
        if free < needed_bytes + RESERVED_BYTES:
            raise StoreError(
                f"{purpose} needs {format_size(needed_bytes + RESERVED_BYTES)} in the store {self.root}, "
                f"{format_size(free)} are free; free "
                f"{format_size(needed_bytes + RESERVED_BYTES - free)} (lmm-forget store gc store={self.root}), "
                "or choose another folder with store=FOLDER"
            )

    @contextmanager
    def wrap_write_errors(self, path: Path) -> Iterator[None]:
        """Turn an error while writing `path` into a StoreError with one line."""
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(self._describe_write_error(path, error)) from error
        except Exception as error:  # safetensors has its own error for a full disk
            if "os error" not in str(error).lower() and "I/O error" not in str(error):
                raise
            raise StoreError(self._describe_write_error(path, error)) from error

    def _describe_write_error(self, path: Path, error: Exception) -> str:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        with suppress(OSError, StopIteration):
            existing = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
            free = shutil.disk_usage(existing).free
            if free < RESERVED_BYTES:
                return (
                    f"cannot write {path} ({reason}; {format_size(free)} free); nothing in the store is lost: "
                    "free some "
                    f"space (lmm-forget store gc store={self.root}) and give the same command again"
                )
        return f"cannot write {path} ({reason}); choose a writable folder with room: store=FOLDER"

    def get_stage_folder(self, key: str) -> Path:
        """The folder of the stage with this key, whether it exists or not."""
        return self.root / STAGES_FOLDER / key


def read_method_state(path: Path, digest: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, values) of a method state's file. Raises as `read_checked_tensors` does, also for another digest."""
    from lmm_forget.models.weight_hashes import hash_state  # imports torch, as does the next one
    from lmm_forget.store.checked_tensors import read_checked_tensors

    values, tensors = read_checked_tensors(path)
    if hash_state(tensors, values) != digest:
        raise ValueError("it is not the state that the record names")
    return tensors, values


def format_size(num_bytes: float) -> str:
    """`1.5 MB`: a number of bytes in a readable unit."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
