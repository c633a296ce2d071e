"""Fetch the pictures that a data set only links to: politely, verified, and so that it can be stopped at any time."""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from lmm_forget.tasks.pixmo_images import image_path

LARGEST = 100_000_000
"""Bytes; what is larger is not a web picture."""
FINAL = {400, 401, 403, 404, 405, 410, 451}
"""HTTP answers that trying again does not change."""
AGENT = "lmm-forget (data set preparation)"


@dataclass(frozen=True)
class Wanted:
    """A picture: its SHA-256 (hex) and where it is linked to."""

    sha256: str
    url: str


@dataclass(frozen=True)
class Got:
    """What became of one picture. `gone` says why it cannot be had; `passing` that a later try may well succeed."""

    wanted: Wanted
    gone: str | None = None
    passing: bool = False
    fetched: bool = True


class Pace:
    """Lets at most `rate` requests a second begin, whoever asks."""

    def __init__(self, rate: float) -> None:
        self._gap = 1.0 / rate
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next request may begin."""
        with self._lock:
            now = time.monotonic()
            start = max(self._next, now)
            self._next = start + self._gap
        time.sleep(max(0.0, start - now))


def fetch_all(
    wanted: Iterable[Wanted],
    folder: Path,
    *,
    rate: float = 20.0,
    workers: int = 8,
    retries: int = 4,
    timeout: float = 30.0,
    pause: float = 1.0,
) -> Iterator[Got]:
    """Fetch every picture that is not in `folder` yet, in any order; a file appears there only with the right hash.

    `retries` more tries follow a failure that may pass (no answer, 429, 5xx), after `pause` seconds that double, or
    as long as the server asks for.
    """
    pace = Pace(rate)

    def one(item: Wanted) -> Got:
        target = image_path(folder, item.sha256)
        if target.exists() and _digest(target.read_bytes()) == item.sha256:
            return Got(item, fetched=False)
        return _fetch(item, target, pace, retries, timeout, pause)

    with ThreadPoolExecutor(workers) as pool:
        running: set[Future[Got]] = set()
        try:
            for item in wanted:
                running.add(pool.submit(one, item))
                if len(running) >= 4 * workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _fetch(item: Wanted, target: Path, pace: Pace, retries: int, timeout: float, pause: float) -> Got:
    reason = "not tried"
    for attempt in range(retries + 1):
        pace.wait()
        rest = pause * 2**attempt
        try:
            content = _get(item.url, timeout)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code}"
            if error.code in FINAL:
                return Got(item, reason)
            rest = max(rest, _asked_wait(error))
        except (TimeoutError, OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:120]
        except ValueError as error:  # not a URL
            return Got(item, f"not a usable link ({error})"[:120])
        else:
            if content is None:
                return Got(item, f"larger than {LARGEST // 1_000_000} MB")
            if _digest(content) != item.sha256:
                return Got(item, "the picture behind the link is another one now")
            _put(content, target)
            return Got(item)
        if attempt < retries:
            time.sleep(rest)
    return Got(item, reason, passing=True)


def _get(url: str, timeout: float) -> bytes | None:
    if not url.startswith(("http://", "https://")):
        raise ValueError("it is not http")
    request = urllib.request.Request(url, headers={"User-Agent": AGENT, "Accept": "image/*,*/*;q=0.5"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        content: bytes = answer.read(LARGEST + 1)
        expected = answer.headers.get("Content-Length")
    if expected is not None and expected.isdigit() and len(content) < min(int(expected), LARGEST):
        raise OSError(f"connection ended after {len(content)} of {expected} bytes")
    return None if len(content) > LARGEST else content


def _asked_wait(error: urllib.error.HTTPError) -> float:
    asked = error.headers.get("Retry-After") if error.headers else None
    return min(float(asked), 120.0) if asked and asked.isdigit() else 0.0


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _put(content: bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    with open(fresh, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(target)
