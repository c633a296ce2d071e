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

from lmm_forget.distributed.stop_signals import STOP_SIGNALS, raise_if_stop_requested
from lmm_forget.errors import DataError, LmmForgetError
from lmm_forget.tasks.task import Sample, Task

R = TypeVar("R")

STOP_SIGNAL_DELAY_SECONDS = 0.5
"""Seconds for a request to stop to arrive here, when it has reached a worker."""


@dataclass(frozen=True)
class ReadRequest:
    """Samples to read together, by position; `rows` are their stored rows where only one reader can fetch them."""

    positions: Sequence[int]
    stored_rows: Sequence[Any] | None = None


@dataclass(frozen=True)
class DeferredError:
    """A mistake that was found ahead of its turn."""

    error: LmmForgetError


def make_read_requests(
    task: Task, samples: Sequence[Sample], batches: Sequence[Sequence[int]]
) -> Iterator[ReadRequest | DeferredError]:
    """The batches as jobs, in order.

    A stream is read here, in its own order and once, by as many batches at a time as lie mixed in it: workers would
    each fetch all of it, and going back starts it over.
    """
    if not is_sequential(samples):
        yield from (ReadRequest(tuple(batch)) for batch in batches)
        return
    for group in _group_overlapping_batches(batches):
        stored_rows: dict[int, Any] = {}
        for place in sorted(place for batch in group for place in batch):
            try:
                stored_rows[place] = samples.read_stored_row(place)  # type: ignore[attr-defined]
            except Exception as error:
                yield DeferredError(wrap_read_error(task, place, error))
                return
        for batch in group:
            yield ReadRequest(tuple(batch), tuple(stored_rows.pop(place) for place in batch))


def is_sequential(samples: Sequence[Sample]) -> bool:
    """Whether samples can only be read one after the other."""
    return bool(getattr(samples, "is_sequential", False))


def read_requested_samples(task: Task, samples: Sequence[Sample], request: ReadRequest) -> list[Sample]:
    """The samples of a job. Raises DataError naming the task and the one that cannot be read."""
    loaded = []
    for position, place in enumerate(request.positions):
        try:
            stored = None if request.stored_rows is None else request.stored_rows[position]
            loaded.append(samples[place] if stored is None else samples.decode_sample(stored))  # type: ignore[attr-defined]
        except Exception as error:
            raise wrap_read_error(task, place, error) from error
    return loaded


def wrap_read_error(task: Task, position: int, error: Exception) -> LmmForgetError:
    """One line for a sample that could not be read, in place of what was raised."""
    if not isinstance(error, LmmForgetError):
        return DataError(f"task {task.name}: sample number {position} cannot be read: {summarize_error(error)}")
    text = str(error)
    return error if text.startswith("task ") else type(error)(f"task {task.name}: {text}")


def summarize_error(error: BaseException) -> str:
    """The kind and the first line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def prefetch_results(
    process_request: Callable[[ReadRequest], R],
    requests: Iterable[ReadRequest | DeferredError],
    *,
    num_workers: int,
    description: str,
) -> Generator[R, None, None]:
    """`work(job)` of every job, in order; by `workers` processes, each one job ahead (0: here, when asked for).

    Raises what `work` raised, as in this process, and LmmForgetError when a worker was killed.
    """
    if not num_workers:
        for request in requests:
            yield process_request(_raise_if_failed(request))
        return
    import torch
    from torch.utils.data import DataLoader, Dataset

    loader: DataLoader[Any] = DataLoader(
        cast(Dataset[Any], _RequestDataset(process_request)),
        sampler=requests,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_identity,
        prefetch_factor=1,  # memory: one job for every worker
        worker_init_fn=_ignore_stop_signals,
        generator=torch.Generator(),  # the global one must not notice
    )
    results: Any = iter(loader)
    try:
        while True:
            try:
                result = next(results)
            except StopIteration:
                return
            except RuntimeError as error:
                if "worker" not in str(error):
                    raise
                time.sleep(STOP_SIGNAL_DELAY_SECONDS)
                raise_if_stop_requested()  # whoever stopped the worker has asked this process to stop, too
                raise LmmForgetError(
                    f"{description}: a process that reads samples was ended ({summarize_error(error)}); too "
                    "little memory, or "
                    "/dev/shm too small? hardware.num_workers=0 reads without such processes"
                ) from error
            yield _raise_if_failed(result)
    finally:
        # At once: an iterator that lives on (in a traceback) would be copied into the next workers, and end there.
        results._shutdown_workers()


class _RequestDataset:
    """A job's result by the job itself, or the mistake that prevents it (raised there it would not stay one line)."""

    def __init__(self, process_request: Callable[[ReadRequest], Any]) -> None:
        self._process_request = process_request

    def __getitem__(self, request: ReadRequest | DeferredError) -> Any:
        if isinstance(request, DeferredError):
            return request
        try:
            return self._process_request(request)
        except LmmForgetError as error:
            return DeferredError(error)


def _raise_if_failed(result: Any) -> Any:
    if isinstance(result, DeferredError):
        raise result.error
    return result


def _identity(result: Any) -> Any:
    return result


def _ignore_stop_signals(_: int) -> None:
    """Let a worker end without a word when it, or everybody, is asked to stop: the parent is the one to say so."""
    for signal_number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(signal_number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _group_overlapping_batches(batches: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Neighbouring batches, cut wherever everything later lies behind everything so far."""
    smallest_later_position: list[float] = [float("inf")]
    for batch in reversed(batches):
        smallest_later_position.append(min([smallest_later_position[-1], *batch]))
    group: list[Sequence[int]] = []
    largest_position: float = -1
    for batch, later in zip(batches, reversed(smallest_later_position[:-1]), strict=True):
        group.append(batch)
        largest_position = max([largest_position, *batch])
        if largest_position < later:
            yield group
            group = []
    if group:
        yield group
