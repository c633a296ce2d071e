"""Samples on their way to a model: read, decoded and encoded ahead of need, in worker processes where wanted.

Of what goes through here only the order of the work changes: the same samples come out, in the same batches, and a
sample that cannot be read is named in the same line, whoever read it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from lmm_forget.distributed.stop_signals import SIGNALS, safe_point
from lmm_forget.errors import DataError, LmmForgetError
from lmm_forget.tasks.base import Sample, Task

R = TypeVar("R")

NOTICE = 0.5
"""Seconds for a request to stop to arrive here, when it has reached a worker."""


@dataclass(frozen=True)
class Job:
    """Samples to read together, by position; `rows` are their stored rows where only one reader can fetch them."""

    places: Sequence[int]
    rows: Sequence[Any] | None = None


@dataclass(frozen=True)
class Failed:
    """A mistake that was found ahead of its turn."""

    error: LmmForgetError


def jobs(task: Task, samples: Sequence[Sample], batches: Sequence[Sequence[int]]) -> Iterator[Job | Failed]:
    """The batches as jobs, in order.

    A stream is read here, in its own order and once, by as many batches at a time as lie mixed in it: workers would
    each fetch all of it, and going back starts it over.
    """
    if not in_order(samples):
        yield from (Job(tuple(batch)) for batch in batches)
        return
    for group in _groups(batches):
        rows: dict[int, Any] = {}
        for place in sorted(place for batch in group for place in batch):
            try:
                rows[place] = samples.stored(place)  # type: ignore[attr-defined]
            except Exception as error:
                yield Failed(unread(task, place, error))
                return
        for batch in group:
            yield Job(tuple(batch), tuple(rows.pop(place) for place in batch))


def in_order(samples: Sequence[Sample]) -> bool:
    """Whether samples can only be read one after the other."""
    return bool(getattr(samples, "in_order", False))


def read(task: Task, samples: Sequence[Sample], job: Job) -> list[Sample]:
    """The samples of a job. Raises DataError naming the task and the one that cannot be read."""
    found = []
    for position, place in enumerate(job.places):
        try:
            stored = None if job.rows is None else job.rows[position]
            found.append(samples[place] if stored is None else samples.made(stored))  # type: ignore[attr-defined]
        except Exception as error:
            raise unread(task, place, error) from error
    return found


def unread(task: Task, place: int, error: Exception) -> LmmForgetError:
    """One line for a sample that could not be read, in place of what was raised."""
    if not isinstance(error, LmmForgetError):
        return DataError(f"task {task.name}: sample number {place} cannot be read: {cause(error)}")
    text = str(error)
    return error if text.startswith("task ") else type(error)(f"task {task.name}: {text}")


def cause(error: BaseException) -> str:
    """The kind and the first line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def worked(
    work: Callable[[Job], R], todo: Iterable[Job | Failed], *, workers: int, what: str
) -> Generator[R, None, None]:
    """`work(job)` of every job, in order; by `workers` processes, each one job ahead (0: here, when asked for).

    Raises what `work` raised, as in this process, and LmmForgetError when a worker was killed.
    """
    if not workers:
        for job in todo:
            yield work(_good(job))
        return
    import torch
    from torch.utils.data import DataLoader, Dataset

    loader: DataLoader[Any] = DataLoader(
        cast(Dataset[Any], _Work(work)),
        sampler=todo,
        batch_size=None,
        num_workers=workers,
        collate_fn=_same,
        prefetch_factor=1,  # memory: one job for every worker
        worker_init_fn=_quiet,
        generator=torch.Generator(),  # the global one must not notice
    )
    results: Any = iter(loader)
    try:
        while True:
            try:
                found = next(results)
            except StopIteration:
                return
            except RuntimeError as error:
                if "worker" not in str(error):
                    raise
                time.sleep(NOTICE)
                safe_point()  # whoever stopped the worker has asked this process to stop, too
                raise LmmForgetError(
                    f"{what}: a process that reads samples was ended ({cause(error)}); too little memory, or "
                    "/dev/shm too small? hardware.workers=0 reads without such processes"
                ) from error
            yield _good(found)
    finally:
        # At once: an iterator that lives on (in a traceback) would be copied into the next workers, and end there.
        results._shutdown_workers()


class _Work:
    """A job's result by the job itself, or the mistake that prevents it (raised there it would not stay one line)."""

    def __init__(self, work: Callable[[Job], Any]) -> None:
        self._work = work

    def __getitem__(self, job: Job | Failed) -> Any:
        if isinstance(job, Failed):
            return job
        try:
            return self._work(job)
        except LmmForgetError as error:
            return Failed(error)


def _good(found: Any) -> Any:
    if isinstance(found, Failed):
        raise found.error
    return found


def _same(found: Any) -> Any:
    return found


def _quiet(_: int) -> None:
    """Let a worker end without a word when it, or everybody, is asked to stop: the parent is the one to say so."""
    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _groups(batches: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Neighbouring batches, cut wherever everything later lies behind everything so far."""
    first_later: list[float] = [float("inf")]
    for batch in reversed(batches):
        first_later.append(min([first_later[-1], *batch]))
    group: list[Sequence[int]] = []
    last: float = -1
    for batch, later in zip(batches, reversed(first_later[:-1]), strict=True):
        group.append(batch)
        last = max([last, *batch])
        if last < later:
            yield group
            group = []
    if group:
        yield group
