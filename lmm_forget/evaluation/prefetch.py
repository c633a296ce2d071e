"""Samples are read, decoded and encoded ahead of need, in worker processes where `num_workers` asks for them.

Workers change only who does the work: the same samples come out, in the same batches, and a sample that cannot be read
gives the same one-line message, whichever process read it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from lmm_forget.distributed.stop_signals import STOP_SIGNALS, raise_if_stop_requested
from lmm_forget.errors import DataError, LmmForgetError
from lmm_forget.tasks.sample_set import SampleSet
from lmm_forget.tasks.task import Sample, Task

R = TypeVar("R")

STOP_SIGNAL_DELAY_SECONDS = 0.5
"""Seconds that a stop signal which has reached a worker may take to reach this process."""


@dataclass(frozen=True)
class ReadRequest:
    """Samples to read together, by position; `stored_rows` of sets that only one reader can fetch (see `SampleSet`)."""

    positions: Sequence[int]
    stored_rows: Sequence[Any] | None = None


@dataclass(frozen=True)
class DeferredError:
    """An error that was found before its batch is due; it is raised when the batch is."""

    error: LmmForgetError


def make_read_requests(
    task: Task, samples: SampleSet, batches: Sequence[Sequence[int]]
) -> Iterator[ReadRequest | DeferredError]:
    """One request per batch, in order.

    A sequential set is read here, once and in its own order, as many batches at a time as overlap in it: workers would
    each fetch all of it, and going back starts it over.
    """
    if not samples.is_sequential:
        yield from (ReadRequest(tuple(batch)) for batch in batches)
        return
    for group in _group_overlapping_batches(batches):
        stored_rows: dict[int, Any] = {}
        for position in sorted(position for batch in group for position in batch):
            try:
                stored_rows[position] = samples.read_stored_row(position)
            except Exception as error:
                yield DeferredError(wrap_read_error(task, position, error))
                return
        for batch in group:
            yield ReadRequest(tuple(batch), tuple(stored_rows.pop(position) for position in batch))


def read_requested_samples(task: Task, samples: SampleSet, request: ReadRequest) -> list[Sample]:
    """The samples of a request. Raises DataError naming the task and the sample that cannot be read."""
    loaded = []
    for index, position in enumerate(request.positions):
        try:
            if request.stored_rows is None:
                loaded.append(samples.read_sample(position))
            else:
                loaded.append(samples.decode_sample(request.stored_rows[index]))
        except Exception as error:
            raise wrap_read_error(task, position, error) from error
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
    """`process_request` of every request, in order, by `num_workers` processes, each one request ahead (0: here).

    Raises what `process_request` raised, as in this process, and LmmForgetError when a worker was killed.
    """
    if not num_workers:
        for request in requests:
            yield process_request(_raise_if_failed(request))
        return
    loader: DataLoader[Any] = DataLoader(
        cast(Dataset[Any], _RequestDataset(process_request)),
        sampler=requests,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_identity,
        prefetch_factor=1,  # memory: one request for every worker
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
    """Maps a request to its result, or to its error (raised in a worker it would not stay one line)."""

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
    """Let a worker end silently when it, or the whole job, is asked to stop: the parent process reports it."""
    for signal_number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(signal_number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _group_overlapping_batches(batches: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Neighbouring batches in groups, cut wherever all later positions are larger than all earlier ones."""
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
