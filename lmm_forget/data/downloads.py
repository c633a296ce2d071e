"""Download linked images with a rate limit and checked hashes; a download can be stopped and continued."""

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

from lmm_forget.tasks.pixmo_folder import get_image_path

MAX_IMAGE_BYTES = 100_000_000
"""Largest size of an image, in bytes."""
PERMANENT_STATUS_CODES = {400, 401, 403, 404, 405, 410, 451}
"""HTTP status codes after which a retry is useless."""
USER_AGENT = "lmm-forget (data set preparation)"


@dataclass(frozen=True)
class DownloadRequest:
    """An image to download: its SHA-256 (hex) and its URL."""

    sha256: str
    url: str


@dataclass(frozen=True)
class DownloadResult:
    """The result for one image.

    `failure_reason` is None if the image is in the folder; `is_temporary` means that a later try may succeed;
    `is_downloaded` is False if the image was there before.
    """

    request: DownloadRequest
    failure_reason: str | None = None
    is_temporary: bool = False
    is_downloaded: bool = True


class RateLimiter:
    """Lets at most `max_per_second` requests start per second, over all threads."""

    def __init__(self, max_per_second: float) -> None:
        self._interval = 1.0 / max_per_second
        self._next_start = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Block until the next request may start."""
        with self._lock:
            now = time.monotonic()
            start = max(self._next_start, now)
            self._next_start = start + self._interval
        time.sleep(max(0.0, start - now))


def download_images(
    requests: Iterable[DownloadRequest],
    folder: Path,
    *,
    max_per_second: float = 20.0,
    num_workers: int = 8,
    max_retries: int = 4,
    timeout: float = 30.0,
    retry_delay: float = 1.0,
) -> Iterator[DownloadResult]:
    """Download every image that is not in `folder` yet, in any order; only files with the right hash are stored.

    A temporary failure (no response, 429, 5xx) is retried up to `max_retries` times, after `retry_delay` seconds, which
    double each time, or after the time that the server requests. `timeout` is in seconds.
    """
    rate_limiter = RateLimiter(max_per_second)

    def download_unless_present(item: DownloadRequest) -> DownloadResult:
        target = get_image_path(folder, item.sha256)
        if target.exists() and _hash_bytes(target.read_bytes()) == item.sha256:
            return DownloadResult(item, is_downloaded=False)
        return _download_with_retries(item, target, rate_limiter, max_retries, timeout, retry_delay)

    with ThreadPoolExecutor(num_workers) as pool:
        running: set[Future[DownloadResult]] = set()
        try:
            for request in requests:
                running.add(pool.submit(download_unless_present, request))
                if len(running) >= 4 * num_workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _download_with_retries(
    request: DownloadRequest,
    target: Path,
    rate_limiter: RateLimiter,
    max_retries: int,
    timeout: float,
    retry_delay: float,
) -> DownloadResult:
    reason = "not tried"
    for attempt in range(max_retries + 1):
        rate_limiter.wait()
        delay = retry_delay * 2**attempt
        try:
            content = _fetch_bytes(request.url, timeout)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code}"
            if error.code in PERMANENT_STATUS_CODES:
                return DownloadResult(request, reason)
            delay = max(delay, _get_retry_after(error))
        except (TimeoutError, OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:120]
        except ValueError as error:  # not a URL
            return DownloadResult(request, f"not a usable link ({error})"[:120])
        else:
            if content is None:
                return DownloadResult(request, f"larger than {MAX_IMAGE_BYTES // 1_000_000} MB")
            if _hash_bytes(content) != request.sha256:
                return DownloadResult(request, "the image behind the link has changed")
            _write_atomically(content, target)
            return DownloadResult(request)
        if attempt < max_retries:
            time.sleep(delay)
    return DownloadResult(request, reason, is_temporary=True)


def _fetch_bytes(url: str, timeout: float) -> bytes | None:
    if not url.startswith(("http://", "https://")):
        raise ValueError("it is not http")
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT, "Accept": "image/*,*/*;q=0.5"})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        content: bytes = response.read(MAX_IMAGE_BYTES + 1)
        expected = response.headers.get("Content-Length")
    if expected is not None and expected.isdigit() and len(content) < min(int(expected), MAX_IMAGE_BYTES):
        raise OSError(f"connection ended after {len(content)} of {expected} bytes")
    return None if len(content) > MAX_IMAGE_BYTES else content


def _get_retry_after(error: urllib.error.HTTPError) -> float:
    retry_after = error.headers.get("Retry-After") if error.headers else None
    return min(float(retry_after), 120.0) if retry_after and retry_after.isdigit() else 0.0


def _hash_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_atomically(content: bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
