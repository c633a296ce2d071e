"""Requests to stop: obeyed at once, or at the next safe point where work would be lost."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_LIMIT_SECONDS = 60.0
"""Seconds between the request and the end, whatever the process is doing then."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""SIGTERM: a launcher or scheduler stops the job; SIGUSR2: Slurm's notice before a time limit or a pre-emption."""
PR_SET_PDEATHSIG = 1
"""prctl's option: the signal that this process gets when its parent ends (linux/prctl.h)."""
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class StopRequested(BaseException):
    """The process was asked to stop; not an Exception, so that no handler on the way mistakes it for a failure."""


_stop_requested = threading.Event()
_stop_signal: int | None = None
_stop_limit = STOP_LIMIT_SECONDS
_defer_depth = 0
_handlers_installed = False


def install_stop_handlers() -> None:
    """Take SIGTERM and SIGUSR2 as requests to stop. Call it from the main thread."""
    global _handlers_installed
    _handlers_installed = True
    for number in STOP_SIGNALS:
        signal.signal(number, _handle_stop_signal)


def set_stop_limit(seconds: float) -> None:
    """Set how many seconds this process may take from a request to its end (default STOP_LIMIT_SECONDS)."""
    global _stop_limit
    _stop_limit = seconds


def reinstall_stop_handlers() -> None:
    """Take the signals back from a library that installed handlers of its own; nothing if nobody listened before."""
    if _handlers_installed and threading.current_thread() is threading.main_thread():
        install_stop_handlers()


def _handle_stop_signal(signum: int, frame: FrameType | None) -> None:
    global _stop_signal
    if _stop_requested.is_set():
        return
    _stop_signal = signum
    _stop_requested.set()
    timer = threading.Timer(_stop_limit, os._exit, args=(143,))
    timer.daemon = True
    timer.start()
    if not _defer_depth:
        raise StopRequested


def is_stop_requested() -> bool:
    """Whether this process was asked to stop."""
    return _stop_requested.is_set()


def get_stop_signal() -> int | None:
    """The number of the signal that asked this process to stop."""
    return _stop_signal


def raise_if_stop_requested() -> None:
    """Stop here if asked to: a safe point, at which all work is saved. Raises StopRequested."""
    if _stop_requested.is_set():
        raise StopRequested


@contextmanager
def defer_stop_requests() -> Iterator[None]:
    """Within the block a request waits for the next `raise_if_stop_requested`; elsewhere it ends the work at once."""
    global _defer_depth
    _defer_depth += 1
    try:
        yield
    finally:
        _defer_depth -= 1


def die_with_parent(parent_pid: int, signal_number: int = signal.SIGKILL) -> None:
    """Be sent `signal_number` when the process `parent_pid`, which started this one, ends; at once if it has ended.

    It allocates nothing and loads nothing, so that it can run between fork and exec (`preexec_fn`).
    """
    if _LIBC is None:
        return
    _LIBC.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(143)
