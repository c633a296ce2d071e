"""A job's status.json: what it is doing, rewritten every second, and in the end how it ended."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from lmm_forget.distributed.process_id import ProcessId
from lmm_forget.files import write_atomic
from lmm_forget.progress import NullProgress

HEARTBEAT_SECONDS = 1.0
"""Seconds between two writes of status.json."""


def read_job_status(job_dir: Path) -> dict[str, Any]:
    """The content of a job folder's status.json; empty if there is none or it cannot be read."""
    try:
        status = json.loads((job_dir / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def close_running_status(job_dir: Path, state: str, error: str | None = None) -> None:
    """Correct the status.json of a job whose process ended without writing how."""
    if read_job_status(job_dir).get("state") == "running":
        overwrite_status(job_dir, state, error)


def overwrite_status(job_dir: Path, state: str, error: str | None = None) -> None:
    """Write how a job ended, over what its own process wrote into status.json."""
    status = {**read_job_status(job_dir), "state": state, "error": error, "updated": _utc_timestamp()}
    write_atomic(job_dir / "status.json", json.dumps(status, sort_keys=True) + "\n")


class StatusFile:
    """A job's heartbeat, and the Progress that feeds it.

    status.json holds state (running, done, failed, interrupted), phase, done, total, unit, rate (units per second in
    this phase), info, error (one line, of a failure), beat (counts the writes), started and updated (UTC), and which
    process it is (host, boot, namespace, pid, start). Use it as a context manager: a thread writes the file every
    second until the end.
    """

    def __init__(self, job_dir: Path) -> None:
        self._path = job_dir / "status.json"
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_periodically, name="status", daemon=True)
        self._phase_started = time.monotonic()
        self._fields: dict[str, Any] = {
            "state": "running",
            "phase": "starting",
            "done": 0,
            "total": 0,
            "unit": "",
            "rate": None,
            "info": {},
            "error": None,
            "beat": 0,
            **asdict(ProcessId.current()),
            "started": _utc_timestamp(),
        }

    def start_phase(self, name: str, total: int, unit: str) -> None:
        """A new piece of work begins; see Progress."""
        print(f"{datetime.now():%H:%M:%S} {name}" + (f" ({total} {unit}s)" if total > 1 else ""), flush=True)
        with self._lock:
            self._phase_started = time.monotonic()
            self._fields.update(phase=name, done=0, total=int(total), unit=unit, rate=None, info={})

    def advance(self, num_done: int, **info: float | int | str) -> None:
        """`num_done` more units are finished; see Progress."""
        with self._lock:
            self._fields["done"] += int(num_done)
            seconds = time.monotonic() - self._phase_started
            self._fields["rate"] = round(self._fields["done"] / seconds, 4) if seconds > 0 else None
            self._fields["info"] = {
                **self._fields["info"],
                **{key: _to_json_scalar(value) for key, value in info.items()},
            }

    def write_final_state(self, state: str, error: str | None = None) -> None:
        """Write how the job ended: done, failed (with one line why) or interrupted."""
        with self._lock:
            self._fields.update(state=state, error=error)
        self._stop.set()
        self._write_status(durable=True)

    def __enter__(self) -> StatusFile:
        """Write the first status and start the heartbeat."""
        self._write_status(durable=False)
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the heartbeat."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _write_periodically(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._write_status(durable=False)
            except OSError:  # a full disk must not end the work; whoever reads sees a stale `updated`
                continue

    def _write_status(self, *, durable: bool) -> None:
        with self._lock:
            self._fields["beat"] += 1
            text = json.dumps({**self._fields, "updated": _utc_timestamp()}, sort_keys=True)
            write_atomic(self._path, text + "\n", durable=durable)


class WorkerStatus(NullProgress):
    """Status of a non-zero rank: writes nothing except a failure, which the launcher reads."""

    def __init__(self, job_dir: Path, rank: int) -> None:
        self._path = rank_failure_path(job_dir, rank)

    def write_final_state(self, state: str, error: str | None = None) -> None:
        """Write the cause of a failure to rank-<n>.json."""
        if state == "failed":
            write_atomic(self._path, json.dumps({"state": state, "error": error}) + "\n")

    def __enter__(self) -> WorkerStatus:
        """Remove the file of an earlier start of the job."""
        self._path.unlink(missing_ok=True)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Do nothing: no thread runs."""


def rank_failure_path(job_dir: Path, rank: int) -> Path:
    """Where rank `rank` (not 0, which has status.json) leaves the cause of its failure."""
    return job_dir / f"rank-{rank}.json"


def _utc_timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _to_json_scalar(value: Any) -> float | int | str:
    """A figure as JSON can hold it (numpy and torch scalars become floats)."""
    return value if isinstance(value, (bool, int, float, str)) else float(value)
