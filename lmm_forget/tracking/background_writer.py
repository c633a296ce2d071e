"""A thread that writes to W&B, so that training never waits for the network."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

RunAction = Callable[[Any], None]
"""Called with the open W&B run; writes something to it."""
MAX_QUEUED_ACTIONS = 20_000
"""Actions that may wait in the queue; more are dropped and counted (each row takes a few hundred bytes)."""


class BackgroundWriter:
    """Opens a W&B run in a thread of its own, performs the queued actions on it in order, and closes it.

    `open_run` opens the run, `close_run` closes it with an exit code. The thread never raises what they or an action
    raise: `first_error` holds the first message. W&B's own timeouts bound the time that both take, and `close` waits no
    longer than its own timeouts allow.
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
        """Queue `action` behind all earlier ones; returns at once."""
        if self._queue.qsize() >= MAX_QUEUED_ACTIONS:
            self.num_dropped += 1
        else:
            self._queue.put(action)

    def close(self, exit_code: int, open_timeout: float, close_timeout: float) -> bool:
        """Perform the actions that still wait, then close the run; returns whether that was done in time.

        Waits at most `open_timeout` seconds for a run that is not open yet, then `close_timeout` seconds for the rest.
        """
        self._queue.put(exit_code)
        if self._thread.is_alive():
            self._opened.wait(open_timeout)
            self._thread.join(close_timeout)
        return not self._thread.is_alive()

    def record_error(self, error: BaseException) -> None:
        """Keep the first error's message, in one line."""
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
    """Call `action` and wait `seconds` at most. Raises what `action` raises, TimeoutError if it is not done by then."""
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
