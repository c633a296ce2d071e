"""Who works on what: claims that keep two jobs from doing the same work, and never decide what is true.

A claim is a file that appears whole (a hard link, which also a network file system makes atomically) and names its
holder: host, boot, process, and that process's start. On the same machine a dead holder is recognised at once; a
holder elsewhere counts as alive while its claim keeps changing, watched on the observer's own monotonic clock, so
that clocks that differ or jump do no harm. File locks are not used: network file systems promise little about them.
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

BEAT = 5.0
"""Seconds between two signs of life in a held claim."""
SILENCE = 60.0
"""Seconds without a sign of life after which a claim from another machine is taken over."""
POLL = 0.2
"""Seconds between two looks at a claim that somebody else holds."""


class Claims:
    """The claims of one store, in a folder.

    `beat` and `silence` are in seconds; without a `beat` there is no thread, and other machines see a sign of life only
    when `refresh` is called.
    """

    def __init__(self, folder: Path, *, beat: float | None = BEAT, silence: float = SILENCE) -> None:
        self.folder, self.beat, self.silence = folder, beat, silence
        self._held: dict[Path, str] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._count = 0
        # What was last seen of others' claims, and since when (monotonic): content -> first seen.
        self._seen: dict[Path, tuple[str, float]] = {}

    @contextmanager
    def claim(
        self, name: str, *, waiting: Callable[[str], None] | None = None, wait: bool = True
    ) -> Iterator[bool]:
        """Hold the claim `name` for the block; yields whether it is held (always, with `wait`).

        `waiting(holder)` is called once when somebody else holds it. Raises OSError where the folder cannot be written.
        """
        path = self.folder / f"{name}.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        told = False
        while not (held := self._take(path)) and wait:
            if waiting is not None and not told:
                waiting(self.holder(name) or "another process")
                told = True
            time.sleep(POLL)
        try:
            yield held
        finally:
            if held:
                self._drop(path)

    def holder(self, name: str) -> str | None:
        """`host, process N` of whoever holds a claim; None if nobody does."""
        found = _read(self.folder / f"{name}.json")
        return None if found is None else f"process {found.get('pid')} on {found.get('host')}"

    def alive(self, name: str) -> bool | None:
        """Whether whoever holds the claim lives; None if that cannot be seen from here, or nobody holds it."""
        holder = ProcessId.parse(_read(self.folder / f"{name}.json"))
        return None if holder is None else holder.is_alive()

    def live(self, name: str) -> bool:
        """Whether somebody holds the claim and is not known to be dead."""
        return (self.folder / f"{name}.json").exists() and self.alive(name) is not False

    def anybody(self) -> bool:
        """Whether anybody who is not known to be dead holds any claim."""
        try:
            return any(self.live(path.stem) for path in self.folder.glob("*.json"))
        except OSError:
            return False

    def _take(self, path: Path) -> bool:
        nonce = secrets.token_hex(8)
        if _create(path, _text(nonce, 0)):
            self._seen.pop(path, None)
            with self._lock:
                self._held[path] = nonce
            self._start_beating()
            return True
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            return False  # it was dropped in the meantime, or the store is gone: the next attempt tells
        if self._abandoned(path, text):
            _take_away(path, text)
        return False

    def _abandoned(self, path: Path, text: str) -> bool:
        """Whether the claim's holder is dead, or has shown no sign of life for `silence` while we watched."""
        if path in self._held:
            return False  # another thread of ours
        holder = ProcessId.parse(_parse(text))
        alive = holder.is_alive() if holder is not None else None
        if alive is not None:
            return not alive
        last, since = self._seen.get(path, ("", 0.0))
        if text != last:
            self._seen[path] = (text, time.monotonic())
            return False
        return time.monotonic() - since > self.silence

    def _drop(self, path: Path) -> None:
        with self._lock:
            nonce = self._held.pop(path)
            with suppress(OSError):
                if _nonce(path) == nonce:
                    path.unlink()

    def _start_beating(self) -> None:
        if self.beat is not None and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(
                target=self._beating, args=(self.beat,), name="claims", daemon=True
            )
            self._thread.start()

    def _beating(self, beat: float) -> None:
        while True:
            time.sleep(beat)
            with self._lock:
                if not self._held:
                    self._thread = None
                    return
                self._show_life()

    def refresh(self) -> None:
        """One sign of life in every claim that is held: for those who have no `beat`."""
        with self._lock:
            self._show_life()

    def _show_life(self) -> None:
        self._count += 1
        for path, nonce in self._held.items():
            with suppress(OSError):  # a vanished store is noticed by whoever writes results
                if _nonce(path) == nonce:
                    write_atomic(path, _text(nonce, self._count), durable=False)


def _take_away(path: Path, judged: str) -> None:
    """Remove the claim that was judged abandoned; if another one came in its place meanwhile, put that back."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if aside.read_text(encoding="utf-8") != judged:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink()


def _create(path: Path, text: str) -> bool:
    """Let `path` appear with `text`, unless there is one: a hard link, or an exclusive open where there are none."""
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


def _text(nonce: str, beat: int) -> str:
    return json.dumps({**asdict(ProcessId.current()), "nonce": nonce, "beat": beat}, sort_keys=True) + "\n"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except OSError:
        return None


def _parse(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _nonce(path: Path) -> str | None:
    found = _read(path)
    return None if found is None else found.get("nonce")
