"""How the deep floors tell the top what they are doing, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what a job is doing; implementations write status files, bars or nothing."""

    def start_phase(self, name: str, total: int, unit: str) -> None:
        """A new piece of work of `total` `unit`s begins; `name` is shown to people ("stage 2 of 5")."""

    def advance(self, num_done: int, **info: float | int | str) -> None:
        """`done` more units are finished; `info` holds figures worth showing (loss, rate)."""


class NullProgress:
    """Listens and says nothing; for library use and tests."""

    def start_phase(self, name: str, total: int, unit: str) -> None:
        """Ignore the start of a phase."""

    def advance(self, num_done: int, **info: float | int | str) -> None:
        """Ignore progress."""
