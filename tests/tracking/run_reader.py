"""An offline run read back: W&B's own messages out of the file that `wandb sync` reads."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

BLOCK = 32768


def run_files(folder: Path) -> list[Path]:
    """The files of a job's offline runs that a sync of `wandb/offline-run-*` would take."""
    return sorted(p for p in folder.glob("wandb/offline-run-*/run-*.wandb"))


class Run:
    """`rows` by `_step` in the order written, `config`, `summary`, `axes`, `artifacts`, `exit` (None: unfinished)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = path.parent / "files"
        self.rows: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.axes: dict[str, str] = {}
        self.artifacts: list[Any] = []
        self.exit: int | None = None
        for record in finished(path):
            self._take(record, record.WhichOneof("record_type"))

    def _take(self, record: Any, kind: str) -> None:
        if kind == "run":
            self.run = record.run
            self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            self.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            self.rows.append(_items(record.history.item))
        elif kind == "summary":
            self.summary |= _items(record.summary.update)
        elif kind == "metric":
            self.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            self.artifacts.append(record.artifact)
        elif kind == "exit":
            self.exit = record.exit.exit_code

    def steps(self) -> list[int]:
        return [row["_step"] for row in self.rows]

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows if name in row]

    def tables(self, name: str) -> list[dict[str, Any]]:
        """The tables logged under a name, in order: each travels as an artifact with its pictures."""
        found = [
            {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
            for artifact in self.artifacts
            if artifact.type == "run_table" and artifact.name.endswith(f"-{name}")
        ]
        tables = [json.loads(files[f"{name}.table.json"].read_text()) for files in found]
        for files, table in zip(found, tables, strict=True):
            pictures = [cell for row in table["data"] for cell in row if isinstance(cell, dict)]
            assert all(files[picture["path"]].stat().st_size for picture in pictures)
        return tables


def finished(path: Path) -> list[Any]:
    """The records of a run that was closed, once W&B's own process has written the last one."""
    deadline = time.monotonic() + 60
    while True:
        found = records(path)
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < deadline, f"{path} was never finished"
        time.sleep(0.1)


def records(path: Path) -> list[Any]:
    """The records of a file: a 7-byte header, then parts of records in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2 as messages

    data, at, parts, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # a block's tail too short for another header
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(messages.Record.FromString(parts))
            parts = b""
    return found


def _items(items: Any) -> dict[str, Any]:
    return {("/".join(item.nested_key) or item.key): json.loads(item.value_json) for item in items}
