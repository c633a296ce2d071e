"""Leases keep two jobs from doing the same work at the same time; results are correct without them.

A lease is a file that is created atomically (by a hard link, which works on network file systems too) and names its
holder: host, boot, process, and that process's start. A dead holder on the same machine is recognised at once. A holder
on another machine counts as alive while its lease file keeps changing; the waiting process measures that with its own
monotonic clock, so that clocks that differ or jump do no harm. File locks are not used, because network file systems
do not support them reliably.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmm_forget.distributed.process_id import ProcessId
from lmm_forget.files import write_atomic

HEARTBEAT_INTERVAL = 5.0
"""Seconds between two heartbeats of a held lease."""
LEASE_TIMEOUT = 60.0
"""Seconds without a heartbeat after which a lease from another machine is taken over."""
POLL_INTERVAL = 0.2
"""Seconds between two attempts to acquire a lease that another process holds."""


class LeaseManager:
    """Acquires, renews and releases the leases of one store, which are files in `folder`.

    `heartbeat_interval` and `timeout` are in seconds. With `heartbeat_interval=None` no thread renews the leases, and
    other machines see a heartbeat only when `send_heartbeat` is called.
    """

    def __init__(
        self,
        folder: Path,
        *,
        heartbeat_interval: float | None = HEARTBEAT_INTERVAL,
        timeout: float = LEASE_TIMEOUT,
    ) -> None:
        self.folder, self.heartbeat_interval, self.timeout = folder, heartbeat_interval, timeout
        self._held_nonces: dict[Path, str] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._heartbeat_count = 0
        # By path of a lease that another process holds: its last content, and when that was first seen (monotonic).
        self._last_seen: dict[Path, tuple[str, float]] = {}

    @contextmanager
    def acquire(self, name: str, *, on_wait: Callable[[str], None] | None = None, wait: bool = True) -> Iterator[bool]:
        """Hold the lease `name` during the with block; yields whether it is held (always True if `wait`).

        `on_wait` is called once, with a description of the holder, if another process holds the lease. Raises OSError
        if the folder cannot be written.
        """
        path = self.folder / f"{name}.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        is_reported = False
        while not (is_acquired := self._try_acquire(path)) and wait:
            if on_wait is not None and not is_reported:
                on_wait(self.describe_holder(name) or "another process")
                is_reported = True
            time.sleep(POLL_INTERVAL)
        try:
            yield is_acquired
        finally:
            if is_acquired:
                self._release(path)

    def describe_holder(self, name: str) -> str | None:
        """`process N on HOST` for the holder of a lease; None if it is free."""
        lease = _read_lease(self.folder / f"{name}.json")
        return None if lease is None else f"process {lease.get('pid')} on {lease.get('host')}"

    def is_holder_alive(self, name: str) -> bool | None:
        """Whether the holder of a lease is alive; None if this machine cannot know, or the lease is free."""
        holder = ProcessId.parse(_read_lease(self.folder / f"{name}.json"))
        return None if holder is None else holder.is_alive()

    def is_live(self, name: str) -> bool:
        """Whether a process holds the lease that is not known to be dead."""
        return (self.folder / f"{name}.json").exists() and self.is_holder_alive(name) is not False

    def has_live_leases(self) -> bool:
        """Whether a process that is not known to be dead holds any lease."""
        try:
            return any(self.is_live(path.stem) for path in self.folder.glob("*.json"))
        except OSError:
            return False

    def _try_acquire(self, path: Path) -> bool:
        nonce = secrets.token_hex(8)
        if _create_exclusive(path, _format_lease(nonce, 0)):
            self._last_seen.pop(path, None)
            with self._lock:
                self._held_nonces[path] = nonce
            self._start_heartbeat()
            return True
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            return False  # it was released in the meantime, or the store is gone: the next attempt shows which
        if self._is_abandoned(path, text):
            _remove_abandoned_lease(path, text)
        return False

    def _is_abandoned(self, path: Path, text: str) -> bool:
        """Whether the holder is dead, or has sent no heartbeat for `timeout` seconds while this process watched."""
        if path in self._held_nonces:
            return False  # another thread of this process holds it
        holder = ProcessId.parse(_parse_lease(text))
        is_alive = holder.is_alive() if holder is not None else None
        if is_alive is not None:
            return not is_alive
        last_text, since = self._last_seen.get(path, ("", 0.0))
        if text != last_text:
            self._last_seen[path] = (text, time.monotonic())
            return False
        return time.monotonic() - since > self.timeout

    def _release(self, path: Path) -> None:
        with self._lock:
            nonce = self._held_nonces.pop(path)
            with suppress(OSError):
                if _read_nonce(path) == nonce:
                    path.unlink()

    def _start_heartbeat(self) -> None:
        if self.heartbeat_interval is not None and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(
                target=self._run_heartbeat, args=(self.heartbeat_interval,), name="leases", daemon=True
            )
            self._thread.start()

    def _run_heartbeat(self, interval: float) -> None:
        while True:
            time.sleep(interval)
            with self._lock:
                if not self._held_nonces:
                    self._thread = None
                    return
                self._write_heartbeats()

    def send_heartbeat(self) -> None:
        """Renew every held lease once; for managers without `heartbeat_interval`."""
        with self._lock:
            self._write_heartbeats()

    def _write_heartbeats(self) -> None:
        self._heartbeat_count += 1
        for path, nonce in self._held_nonces.items():
            with suppress(OSError):  # the code that writes results reports a store that is gone
                if _read_nonce(path) == nonce:
                    write_atomic(path, _format_lease(nonce, self._heartbeat_count), durable=False)


def _remove_abandoned_lease(path: Path, expected_text: str) -> None:
    """Remove an abandoned lease; if a new one has replaced it in the meantime, put that one back."""
    moved_path = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        path.rename(moved_path)
        if moved_path.read_text(encoding="utf-8") != expected_text:
            with suppress(OSError):
                os.link(moved_path, path)
        moved_path.unlink()


def _create_exclusive(path: Path, text: str) -> bool:
    """Create `path` with `text` unless it exists: by a hard link, or an exclusive open on a system without links."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    draft.write_text(text, encoding="utf-8")
    try:
        os.link(draft, path)
        return True
    except FileExistsError:
        return False
    except OSError:
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
            return True
        except FileExistsError:
            return False
    finally:
        draft.unlink(missing_ok=True)


def _format_lease(nonce: str, heartbeat_count: int) -> str:
    return json.dumps({**asdict(ProcessId.current()), "nonce": nonce, "beat": heartbeat_count}, sort_keys=True) + "\n"


def _read_lease(path: Path) -> dict[str, Any] | None:
    try:
        return _parse_lease(path.read_text(encoding="utf-8"))
    except OSError:
        return None


def _parse_lease(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _read_nonce(path: Path) -> str | None:
    lease = _read_lease(path)
    return None if lease is None else lease.get("nonce")
