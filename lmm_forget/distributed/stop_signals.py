"""Being asked to stop: at once where nothing is at stake, at the next safe point where work would be lost."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_LIMIT = 60.0
"""Seconds between the request and the end, whatever the process is doing then."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""SIGTERM: a launcher or scheduler stops the job; SIGUSR2: Slurm's notice before a time limit or a pre-emption."""


PR_SET_PDEATHSIG = 1


class Interrupted(BaseException):
    """The process was asked to stop; not an Exception, so that no handler on the way mistakes it for a failure."""


_asked = threading.Event()
_by: int | None = None
_limit = STOP_LIMIT
_careful = 0
_listening = False


def listen() -> None:
    """Take SIGTERM and SIGUSR2 as requests to stop. Call it from the main thread."""
    global _listening
    _listening = True
    for number in SIGNALS:
        signal.signal(number, _heard)


def give(seconds: float) -> None:
    """Set how long this process may take from a request to its end; whoever asks may know better than STOP_LIMIT."""
    global _limit
    _limit = seconds


def listen_again() -> None:
    """Take the signals back from a library that installed handlers of its own; nothing if nobody listened before."""
    if _listening and threading.current_thread() is threading.main_thread():
        listen()


def _heard(signum: int, frame: FrameType | None) -> None:
    global _by
    if _asked.is_set():
        return
    _by = signum
    _asked.set()
    timer = threading.Timer(_limit, os._exit, args=(143,))
    timer.daemon = True
    timer.start()
    if not _careful:
        raise Interrupted


def asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked.is_set()


def asked_by() -> int | None:
    """The number of the signal that asked this process to stop."""
    return _by


def safe_point() -> None:
    """Everything worth keeping is kept: stop here if asked to. Raises Interrupted."""
    if _asked.is_set():
        raise Interrupted


@contextmanager
def at_safe_points() -> Iterator[None]:
    """Within the block a request waits for the next `safe_point`; elsewhere it ends the work at once."""
    global _careful
    _careful += 1
    try:
        yield
    finally:
        _careful -= 1


def end_with(parent: int) -> None:
    """Be killed when the process `parent`, which started this one, is gone; at once if it is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(143)
