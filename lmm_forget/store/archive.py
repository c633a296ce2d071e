"""Where finished work lies: one folder per stage, complete or absent, every byte of it under a checksum.

    <store>/stages/<key>/record.json         what the stage was and gave, under its own checksum
    <store>/stages/<key>/delta.safetensors   the tensors it moved, in the base checkpoint's dtype; hashes in the record
    <store>/answers/<model>/                 what a model said, see answers.py
    <store>/partial/<key>/                   where a stage that is being trained can be taken up, see partial.py
    <store>/probes/                          what probes saw, see looks.py
    <store>/paths/<path>.json                which stage a configuration led to, for planning only
    <store>/claims/                          who works on what, see claims.py
    <store>/damaged/                         what failed its checksum: moved here, never used

Claims only spare double work; correctness rests on the commit, a rename that the first writer wins.
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
from lmm_forget.files import sealed, sync, unseal, usual_mode, write_atomic
from lmm_forget.store.claims import Claims

if TYPE_CHECKING:
    from torch import Tensor

RECORD_SCHEMA = 2
RECORD, DELTA = "record.json", "delta.safetensors"
STAGES, PATHS, DAMAGED, CLAIMS = "stages", "paths", "damaged", "claims"
ROOM = 64 * 2**20
"""Bytes beside a stage's own that a store must have left when the stage begins: records, answers, headers."""


class Damaged(StoreError):
    """Something in the store is not what was written; it has been moved aside, and must be computed again."""


class Store:
    """The archive in a folder, made when first written to. Raises StoreError when it cannot be used.

    `note(line)` hears of everything that was found damaged.
    """

    def __init__(self, root: str | os.PathLike[str], note: Callable[[str], None] | None = None) -> None:
        self.root = Path(root)
        self.claims = Claims(self.root / CLAIMS)
        self.note = note or (lambda line: None)

    def record(self, key: str) -> dict[str, Any] | None:
        """The record of a stage; None if nobody has finished it, or what was there is damaged and now moved aside."""
        path = self.folder(key) / RECORD
        try:
            return self.read_record(key)
        except FileNotFoundError:
            if path.parent.is_dir():
                self.set_aside(path.parent, f"{path.parent} has no {RECORD}")
            return None
        except PermissionError as error:
            raise StoreError(f"{path} cannot be read ({error.strerror})") from error
        except (OSError, ValueError) as error:
            self.set_aside(path.parent, f"{path} is damaged: {error}")
            return None

    def read_record(self, key: str) -> dict[str, Any]:
        """A record as it lies there. Raises FileNotFoundError, and ValueError for one that cannot be trusted."""
        record = unseal((self.folder(key) / RECORD).read_text(encoding="utf-8"))
        if record.get("schema") != RECORD_SCHEMA:
            raise ValueError(f"its schema is {record.get('schema')}, this version reads {RECORD_SCHEMA}")
        if record.get("key") != key:
            raise ValueError(f"it belongs to {record.get('key')}")
        return record

    def delta(self, key: str) -> dict[str, Tensor]:
        """All tensors that a stage moved, see `tensors`."""
        return dict(self.tensors(key))

    def tensors(self, key: str, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """The tensors that a stage moved (those in `names`; default all), one by one, each checked.

        Raises Damaged, after the stage was moved aside, if anything is not what its record says.
        """
        from safetensors import SafetensorError

        path = self.folder(key) / DELTA
        record = self.record(key)
        if record is None:
            raise Damaged(
                f"stage {key} is not in the store {self.root} any more; the same command computes it again"
            )
        try:
            yield from read_delta(path, record["tensors"], names)
        except PermissionError as error:
            raise StoreError(f"{path} cannot be read ({error.strerror})") from error
        except (OSError, ValueError, SafetensorError) as error:
            raise Damaged(self.set_aside(path.parent, f"{path} is damaged: {error}")) from None

    def commit(self, key: str, record: Mapping[str, Any], delta: Mapping[str, Tensor]) -> None:
        """File a finished stage; if somebody else filed it in the meantime, theirs stays.

        `record["tensors"]` holds the hash of every tensor in `delta`.
        """
        from safetensors.torch import save_file

        final = self.folder(key)
        draft = final.with_name(f".{key}.{secrets.token_hex(8)}")
        with self.writing(draft):
            try:
                draft.mkdir(parents=True)
                kinds = json.dumps(dict.fromkeys(sorted(delta), "replace"))
                save_file(dict(delta), draft / DELTA, metadata={"kinds": kinds})
                usual_mode(draft / DELTA)
                sync(draft / DELTA)
                text = sealed({**record, "schema": RECORD_SCHEMA, "key": key})
                (draft / RECORD).write_text(text, encoding="utf-8")
                sync(draft / RECORD)
                sync(draft)
                try:
                    draft.rename(final)
                except OSError:
                    if not (final / RECORD).exists():
                        raise
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            sync(final.parent)

    def led_to(self, path_key: str, inputs: Mapping[str, str] | None = None) -> str | None:
        """The stage that a path of configurations led to last time; a hint for planning, not a proof.

        With `inputs` only where it was made from files and code with these fingerprints (see `store.inputs`).
        """
        with suppress(OSError, ValueError, KeyError, TypeError):
            hint = unseal((self.root / PATHS / f"{path_key}.json").read_text(encoding="utf-8"))
            if inputs is None or hint.get("inputs", {}) == dict(inputs):
                return str(hint["stage"])
        return None

    def leads_to(self, path_key: str, key: str, inputs: Mapping[str, str] | None = None) -> None:
        """Remember where a path of configurations led to, and from which inputs."""
        if self.led_to(path_key, inputs or {}) != key:
            path = self.root / PATHS / f"{path_key}.json"
            with self.writing(path):
                hint = {"stage": key, "inputs": dict(inputs or {})}
                write_atomic(path, sealed(hint, indent=None), durable=False)

    @contextmanager
    def claim(
        self, name: str, *, wait: bool = True, waiting: Callable[[str], None] | None = None
    ) -> Iterator[bool]:
        """Hold the claim `name` for the block; yields whether it is held (always, with `wait`). See Claims.claim."""
        claim = self.claims.claim(name, wait=wait, waiting=waiting)
        with self.writing(self.root / CLAIMS):
            held = claim.__enter__()
        try:
            yield held
        finally:
            claim.__exit__(None, None, None)

    def set_aside(self, path: Path, reason: str) -> str:
        """Move something damaged out of the way, tell `note`, and return the line that says so."""
        where = self.root / DAMAGED / f"{path.parent.name}-{path.name}-{secrets.token_hex(4)}"
        try:
            where.parent.mkdir(parents=True, exist_ok=True)
            path.rename(where)
        except FileNotFoundError:
            line = f"{reason}; somebody else has moved it aside"
        except OSError as error:
            raise StoreError(
                f"{reason}; it cannot be moved aside ({error.strerror}): "
                "make the store writable or choose another one with store=FOLDER"
            ) from error
        else:
            line = f"{reason}; moved to {where}"
        self.note(line)
        return line

    def require(self, needed: int, what: str) -> None:
        """Raise StoreError unless the store's disk has `needed` bytes and some more left."""
        existing = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(existing).free
        if free < needed + ROOM:
            raise StoreError(
                f"{what} needs {size(needed + ROOM)} in the store {self.root}, {size(free)} are free; free "
                f"{size(needed + ROOM - free)} (lmm-forget store gc store={self.root}), "
                "or choose another folder with store=FOLDER"
            )

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Turn a failure to write below the store into one line."""
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(self._cannot_write(path, error)) from error
        except Exception as error:  # safetensors has its own error for a full disk
            if "os error" not in str(error).lower() and "I/O error" not in str(error):
                raise
            raise StoreError(self._cannot_write(path, error)) from error

    def _cannot_write(self, path: Path, error: Exception) -> str:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        with suppress(OSError, StopIteration):
            existing = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
            free = shutil.disk_usage(existing).free
            if free < ROOM:
                return (
                    f"cannot write {path} ({reason}; {size(free)} free); nothing in the store is lost: free some "
                    f"space (lmm-forget store gc store={self.root}) and give the same command again"
                )
        return f"cannot write {path} ({reason}); choose a writable folder with room: store=FOLDER"

    def folder(self, key: str) -> Path:
        """Where the stage with this key lies, or will lie."""
        return self.root / STAGES / key


def read_delta(
    path: Path, hashes: Mapping[str, str], names: Collection[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a delta file (those in `names`), compared with `hashes` (of all its tensors).

    Raises OSError, SafetensorError, or ValueError for one that is not what was recorded.
    """
    from safetensors import safe_open

    from lmm_forget.models.weights import tensor_hash

    with safe_open(path, framework="pt") as file:
        kinds = json.loads((file.metadata() or {}).get("kinds", "{}"))
        held = set(file.keys())
        strange = sorted({str(kinds.get(name)) for name in held} - {"replace"})
        if strange:
            raise ValueError(
                f"it holds entries of kind {', '.join(strange)}; this version knows only replace"
            )
        if held != set(hashes):
            raise ValueError(f"it holds other tensors than its record, {min(held ^ set(hashes))} for one")
        for name in sorted(held if names is None else names):
            tensor = file.get_tensor(name)
            if tensor_hash(tensor) != hashes[name]:
                raise ValueError(f"{name} does not match its checksum")
            yield name, tensor


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
