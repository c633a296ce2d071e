"""What a job rests on in the store, noted in its folder, so that nobody cleans it away."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lmm_forget.files import write_atomic
from lmm_forget.store.maintenance import REFERENCES_FILE

REFERENCE_KINDS = ("stages", "models", "probes", "measured")


class StoreReferences:
    """Keeps `store.json` of a job's folder; only the rank that writes files (`is_writer`) does anything.

    What an earlier start of the job rested on stays in it until `drop_previous`: it may be needed again.
    """

    def __init__(self, job_dir: Path, store_root: Path, is_writer: bool = True) -> None:
        self._path, self._store_root, self._is_writer = job_dir / REFERENCES_FILE, store_root, is_writer
        self._keys: dict[str, list[str]] = {kind: [] for kind in REFERENCE_KINDS}

    def record(self, kind: str, key: str) -> None:
        """Note that the job rests on the entry `key` of a kind (one of REFERENCE_KINDS)."""
        if self._is_writer and key not in self._keys[kind]:
            self._keys[kind].append(key)
            self._write(self._read_previous())

    def drop_previous(self) -> None:
        """The job is done: keep only what this start of it rests on."""
        if self._is_writer:
            self._write({})

    def _read_previous(self) -> dict[str, list[str]]:
        """What the file names so far; nothing where there is none or it belongs to another store."""
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            previous = {kind: [str(key) for key in content.get(kind, [])] for kind in REFERENCE_KINDS}
            return previous if content["store"] == str(self._store_root) else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _write(self, previous: Mapping[str, list[str]]) -> None:
        merged = {
            kind: [*keys, *(key for key in previous.get(kind, []) if key not in keys)]
            for kind, keys in self._keys.items()
        }
        text = json.dumps({"store": str(self._store_root), **merged}, indent=1) + "\n"
        write_atomic(self._path, text, durable=False)
