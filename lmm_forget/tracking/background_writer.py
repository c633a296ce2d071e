"""A thread that carries things to W&B, so that whoever trains never waits for a network."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

RunAction = Callable[[Any], None]
"""What to do with the open run."""
MAX_QUEUED_ACTIONS = 20_000
"""Deliveries that may wait; beyond that they are dropped and counted (each row is a few hundred bytes)."""


class BackgroundWriter:
    """Opens a run in a thread of its own, hands it everything posted in order, and closes it.

    `opener` opens the run; `closer` closes it with an exit code. Nothing they or a delivery raise gets out: the
    first complaint is kept in `trouble`. Both must end by themselves in bounded time, as W&B's own timeouts see to;
    `close` gives up on them all the same.
    """

    def __init__(self, open_run: Callable[[], Any], close_run: Callable[[Any, int], None]) -> None:
        self.first_error: str | None = None
        self.num_dropped = 0
        self._open_run, self._close_run = open_run, close_run
        self._queue: queue.Queue[RunAction | int] = queue.Queue()
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._process_queue, name="wandb", daemon=True)
        self._thread.start()

    def enqueue(self, action: RunAction) -> None:
        """Have `delivery` called with the run, after everything posted before; returns at once."""
        if self._queue.qsize() >= MAX_QUEUED_ACTIONS:
            self.num_dropped += 1
        else:
            self._queue.put(action)

    def close(self, exit_code: int, open_timeout: float, close_timeout: float) -> bool:
        """Close the run after what is still waiting; whether that was done in time.

        Waits `opening` seconds at most for a run that is not open yet, then `closing` seconds for the rest.
        """
        self._queue.put(exit_code)
        if self._thread.is_alive():
            self._opened.wait(open_timeout)
            self._thread.join(close_timeout)
        return not self._thread.is_alive()

    def record_error(self, error: BaseException) -> None:
        """Remember the first thing that went wrong, in one line."""
        lines = str(error).strip().splitlines()
        self.first_error = self.first_error or (lines[0].strip() if lines else type(error).__name__)

    def _process_queue(self) -> None:
        run = None
        try:
            run = self._open_run()
        except Exception as error:
            self.record_error(error)
        self._opened.set()
        while True:
            item = self._queue.get()
            if run is None:
                if isinstance(item, int):
                    return
                continue
            try:
                if isinstance(item, int):
                    self._close_run(run, item)
                    return
                item(run)
            except Exception as error:
                self.record_error(error)
                if isinstance(item, int):
                    return


def call_with_timeout(action: Callable[[], Any], seconds: float) -> None:
    """Call `action` and wait `seconds` at most. Raises what it raises, TimeoutError if it goes on."""
    errors: list[Exception] = []

    def run_action() -> None:
        try:
            action()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run_action, name="wandb-slow", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"not done after {seconds:g} s")
    if errors:
        raise errors[0]
