"""A thread that carries things to W&B, so that whoever trains never waits for a network."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

Delivery = Callable[[Any], None]
"""What to do with the open run."""
MOST_WAITING = 20_000
"""Deliveries that may wait; beyond that they are dropped and counted (each row is a few hundred bytes)."""


class Courier:
    """Opens a run in a thread of its own, hands it everything posted in order, and closes it.

    `opener` opens the run; `closer` closes it with an exit code. Nothing they or a delivery raise gets out: the
    first complaint is kept in `trouble`. Both must end by themselves in bounded time, as W&B's own timeouts see to;
    `close` gives up on them all the same.
    """

    def __init__(self, opener: Callable[[], Any], closer: Callable[[Any, int], None]) -> None:
        self.trouble: str | None = None
        self.dropped = 0
        self._opener, self._closer = opener, closer
        self._waiting: queue.Queue[Delivery | int] = queue.Queue()
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="wandb", daemon=True)
        self._thread.start()

    def post(self, delivery: Delivery) -> None:
        """Have `delivery` called with the run, after everything posted before; returns at once."""
        if self._waiting.qsize() >= MOST_WAITING:
            self.dropped += 1
        else:
            self._waiting.put(delivery)

    def close(self, exit_code: int, opening: float, closing: float) -> bool:
        """Close the run after what is still waiting; whether that was done in time.

        Waits `opening` seconds at most for a run that is not open yet, then `closing` seconds for the rest.
        """
        self._waiting.put(exit_code)
        if self._thread.is_alive():
            self._opened.wait(opening)
            self._thread.join(closing)
        return not self._thread.is_alive()

    def complain(self, error: BaseException) -> None:
        """Remember the first thing that went wrong, in one line."""
        lines = str(error).strip().splitlines()
        self.trouble = self.trouble or (lines[0].strip() if lines else type(error).__name__)

    def _carry(self) -> None:
        run = None
        try:
            run = self._opener()
        except Exception as error:
            self.complain(error)
        self._opened.set()
        while True:
            item = self._waiting.get()
            if run is None:
                if isinstance(item, int):
                    return
                continue
            try:
                if isinstance(item, int):
                    self._closer(run, item)
                    return
                item(run)
            except Exception as error:
                self.complain(error)
                if isinstance(item, int):
                    return


def bounded(action: Callable[[], Any], seconds: float) -> None:
    """Call `action` and wait `seconds` at most. Raises what it raises, TimeoutError if it goes on."""
    failed: list[Exception] = []

    def act() -> None:
        try:
            action()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=act, name="wandb-slow", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"not done after {seconds:g} s")
    if failed:
        raise failed[0]
