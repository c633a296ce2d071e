"""The archive of finished stages: one folder per stage, complete or absent, every byte of it covered by a checksum.

    <store>/stages/<key>/record.json         configuration and results of the stage, with a checksum of its own
    <store>/stages/<key>/delta.safetensors   tensors it changed, in the base checkpoint's dtype; hashes in the record
    <store>/answers/<model>/                 the answers of a model, see response_cache.py
    <store>/partial/<key>/                   checkpoints of a stage in training, see stage_checkpoints.py
    <store>/probes/                          probe results, see probe_cache.py
    <store>/paths/<path>.json                the stage that a configuration led to, only a hint for planning
    <store>/claims/                          leases of running work, see leases.py
    <store>/damaged/                         what failed its checksum: moved here, never used

Leases only avoid double work; results are correct because a stage is committed by a rename that the first writer wins.
"""

from __future__ import annotations

import json
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

RECORD_SCHEMA = 3
RECORD_FILE, DELTA_FILE = "record.json", "delta.safetensors"
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
        """All tensors that a stage changed, see `iterate_delta_tensors`."""
        return dict(self.iterate_delta_tensors(key))

    def iterate_delta_tensors(self, key: str, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) for the tensors that a stage changed (those in `names`; default all), each verified.

        Raises CorruptEntryError, after moving the stage aside, if a tensor differs from its record.
        """
        from safetensors import SafetensorError

        path = self.get_stage_folder(key) / DELTA_FILE
        record = self.find_record(key)
        if record is None:
            raise CorruptEntryError(
                f"stage {key} is not in the store {self.root} any more; the same command computes it again"
            )
        try:
            yield from read_delta_tensors(path, record["tensors"], names)
        except PermissionError as error:
            raise StoreError(f"{path} cannot be read ({error.strerror})") from error
        except (OSError, ValueError, SafetensorError) as error:
            raise CorruptEntryError(self.quarantine(path.parent, f"{path} is damaged: {error}")) from None

    def commit_stage(self, key: str, record: Mapping[str, Any], delta: Mapping[str, Tensor]) -> None:
        """Store a finished stage; if another process stored it in the meantime, that one stays.

        `record["tensors"]` holds the hash of every tensor in `delta`.
        """
        from safetensors.torch import save_file

        final = self.get_stage_folder(key)
        draft = final.with_name(f".{key}.{secrets.token_hex(8)}")
        with self.wrap_write_errors(draft):
            try:
                draft.mkdir(parents=True)
                entry_kinds = json.dumps(dict.fromkeys(sorted(delta), "replace"))
                save_file(dict(delta), draft / DELTA_FILE, metadata={"kinds": entry_kinds})
                apply_default_permissions(draft / DELTA_FILE)
                fsync_path(draft / DELTA_FILE)
                text = dump_json_with_checksum({**record, "schema": RECORD_SCHEMA, "key": key})
                (draft / RECORD_FILE).write_text(text, encoding="utf-8")
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


def read_delta_tensors(
    path: Path, hashes: Mapping[str, str], names: Collection[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a delta file (those in `names`), each compared with `hashes` (of all its tensors).

    Raises OSError, SafetensorError, or ValueError for a tensor that differs from its hash.
    """
    from safetensors import safe_open

    from lmm_forget.models.weight_hashes import hash_tensor

    with safe_open(path, framework="pt") as file:
        kinds = json.loads((file.metadata() or {}).get("kinds", "{}"))
        stored_names = set(file.keys())
        unknown_kinds = sorted({str(kinds.get(name)) for name in stored_names} - {"replace"})
        if unknown_kinds:
            raise ValueError(f"it holds entries of kind {', '.join(unknown_kinds)}; this version knows only replace")
        if stored_names != set(hashes):
            raise ValueError(f"it holds other tensors than its record, {min(stored_names ^ set(hashes))} for one")
        for name in sorted(stored_names if names is None else names):
            tensor = file.get_tensor(name)
            if hash_tensor(tensor) != hashes[name]:
                raise ValueError(f"{name} does not match its checksum")
            yield name, tensor


def format_size(num_bytes: float) -> str:
    """`1.5 MB`: a number of bytes in a readable unit."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
