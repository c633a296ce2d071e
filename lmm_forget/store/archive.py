"""Where finished work lies: one folder per stage, one parquet file per set of answers, each complete or absent.

    <store>/stages/<key>/record.json         what the stage was and gave
    <store>/stages/<key>/delta.safetensors   the tensors it moved, in the base checkpoint's dtype
    <store>/answers/<key>.parquet            answers of one model to one task
    <store>/claims/<name>.lock               held while somebody works on it

Claims only spare double work; correctness rests on the commit, a rename that the first writer wins.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from lmm_forget.errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor

RECORD_SCHEMA = 1
RECORD, DELTA = "record.json", "delta.safetensors"


class Store:
    """The archive in a folder, made when first written to. Raises StoreError when it cannot be used."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def record(self, key: str) -> dict[str, Any] | None:
        """The record of a stage, None if nobody has finished it. StoreError if it is damaged or of another schema."""
        path = self._stage(key) / RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}); delete its folder to compute the stage again"
            ) from error
        if record.get("schema") != RECORD_SCHEMA or record.get("key") != key:
            raise StoreError(
                f"{path} has schema {record.get('schema')} and key {record.get('key')}, "
                f"expected {RECORD_SCHEMA} and {key}; delete its folder to compute the stage again"
            )
        return dict(record)

    def delta(self, key: str) -> dict[str, Tensor]:
        """The tensors a stage moved. StoreError for a missing or unreadable file, or an entry of an unknown kind."""
        from safetensors import SafetensorError, safe_open

        path = self._stage(key) / DELTA
        try:
            with safe_open(path, framework="pt") as file:
                kinds = json.loads((file.metadata() or {}).get("kinds", "{}"))
                names = list(file.keys())
                strange = sorted({str(kinds.get(name)) for name in names} - {"replace"})
                if strange:
                    raise StoreError(
                        f"{path} holds entries of kind {', '.join(strange)}; this version knows only replace"
                    )
                return {name: file.get_tensor(name) for name in names}
        except (OSError, ValueError, SafetensorError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}); delete its folder to compute the stage again"
            ) from error

    def commit(self, key: str, record: Mapping[str, Any], delta: Mapping[str, Tensor]) -> None:
        """File a finished stage; if somebody else filed it in the meantime, theirs stays."""
        from safetensors.torch import save_file

        final = self._stage(key)
        draft = final.with_name(f".{key}.{os.getpid()}")
        with self._writing(draft):
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            kinds = json.dumps(dict.fromkeys(sorted(delta), "replace"))
            save_file(dict(delta), draft / DELTA, metadata={"kinds": kinds})
            _sync(draft / DELTA)
            text = (
                json.dumps({**record, "schema": RECORD_SCHEMA, "key": key}, sort_keys=True, indent=1) + "\n"
            )
            (draft / RECORD).write_text(text, encoding="utf-8")
            _sync(draft / RECORD)
            try:
                draft.rename(final)
            except OSError:
                if not (final / RECORD).exists():
                    raise
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            _sync(final.parent)

    def answers(self, key: str) -> Path:
        """Where the answers with this key lie, or will lie; whoever writes them lets the file appear whole."""
        return self.root / "answers" / f"{key}.parquet"

    @contextmanager
    def claim(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the claim `name` for the block; yields whether it is held (always, with `wait`).

        The operating system drops a dead holder's claim.
        """
        path = self.root / "claims" / f"{name}.lock"
        with self._writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, timeout=-1 if wait else 0)
            try:
                lock.acquire()
            except Timeout:
                held = False
            else:
                held = True
        try:
            yield held
        finally:
            if held:
                lock.release()

    def _stage(self, key: str) -> Path:
        return self.root / "stages" / key

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot write {path} ({error.strerror or error}); choose a writable folder with room: store=FOLDER"
            ) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
