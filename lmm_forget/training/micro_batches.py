"""Which samples form which optimizer step: fixed first, then cut over ranks and micro-batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lmm_forget.errors import ConfigError, DataError, LmmForgetError
from lmm_forget.training.determinism import derive_seed

if TYPE_CHECKING:
    from lmm_forget.models.family import EncodedInputs
    from lmm_forget.models.loading import LMM


class TrainItem(NamedTuple):
    """One training sample: the user's turn, its images, the answer that is taught, and the system prompt if any."""

    id: str
    question: str
    images: Sequence[Image.Image]
    answer: str
    system: str | None = None


@dataclass(frozen=True)
class MicroBatchIndices:
    """The samples of one micro-batch, which optimizer step they belong to, and whether they complete it."""

    step: int
    sample_indices: tuple[int, ...]
    is_last_of_step: bool


@dataclass(frozen=True)
class MicroBatch:
    """Encoded samples: keyword arguments of the model, and labels [B, T] with -100 where no loss counts.

    Rows behind those of the slot's samples are fillers, whose loss counts nothing.
    """

    indices: MicroBatchIndices
    inputs: dict[str, Tensor]
    labels: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on `device`."""
        moved_inputs = {k: v.to(device, non_blocking=True) for k, v in self.inputs.items()}
        return MicroBatch(self.indices, moved_inputs, self.labels.to(device, non_blocking=True))


def make_global_batches(
    num_samples: int, global_batch_size: int, *, seed: int, task: str, epoch: int
) -> list[np.ndarray]:
    """Indices of the `n // global_batch` global batches of an epoch, each an int64 array [global_batch].

    The order is that of a hash of (seed, task, epoch, index), the same with every library version. The last
    incomplete batch, `n % global_batch` samples, is dropped. Raises ConfigError when not even one is
    complete.
    """
    if global_batch_size < 1:
        raise ConfigError(f"training.global_batch_size={global_batch_size}: must be at least 1")
    if num_samples < global_batch_size:
        raise ConfigError(
            f"{task}: {num_samples} training samples are fewer than one global batch; "
            f"use more samples or training.global_batch_size={max(num_samples, 1)} or less"
        )
    prefix = f"{seed}\0{task}\0{epoch}\0"
    keys = [hashlib.blake2b(f"{prefix}{i}".encode(), digest_size=16).digest() for i in range(num_samples)]
    order = np.array(sorted(range(num_samples), key=keys.__getitem__), dtype=np.int64)
    return list(order[: num_samples - num_samples % global_batch_size].reshape(-1, global_batch_size))


def count_accumulation_steps(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro-batches per rank and optimizer step. Raises ConfigError naming valid sizes when they do not
    divide.
    """
    if world_size < 1 or global_batch_size % world_size:
        raise ConfigError(
            f"training.global_batch_size={global_batch_size} cannot be cut over {world_size} devices; "
            "nearest that can: "
            f"{_format_nearest_sizes([world_size * k for k in range(1, global_batch_size + 2)], global_batch_size)}"
        )
    samples_per_rank = global_batch_size // world_size
    if micro_batch_size < 1 or samples_per_rank % micro_batch_size:
        valid_sizes = [m for m in range(1, samples_per_rank + 1) if samples_per_rank % m == 0]
        raise ConfigError(
            f"hardware.micro_batch_size={micro_batch_size} does not divide the {samples_per_rank} samples of a device "
            f"(training.global_batch_size={global_batch_size} over {world_size}); "
            f"nearest that do: {_format_nearest_sizes(valid_sizes, micro_batch_size)}"
        )
    return samples_per_rank // micro_batch_size


def shrink_micro_batch_size(micro_batch_size: int, samples_per_rank: int) -> int | None:
    """The largest micro-batch of at most half of `micro_batch` that divides `share`; None below 1."""
    return next((size for size in range(micro_batch_size // 2, 0, -1) if samples_per_rank % size == 0), None)


def _format_nearest_sizes(valid_sizes: Sequence[int], requested_size: int) -> str:
    below = [v for v in valid_sizes if v <= requested_size][-1:]
    above = [v for v in valid_sizes if v > requested_size][:1]
    return " or ".join(map(str, below + above))


def make_micro_batch_indices(
    num_samples: int,
    *,
    num_steps: int,
    global_batch_size: int,
    micro_batch_size: int,
    seed: int,
    task: str,
    rank: int = 0,
    world_size: int = 1,
) -> list[MicroBatchIndices]:
    """All micro-batches of one rank, in order: `steps` optimizer steps over as many epochs as they take."""
    micro_batches_per_step = count_accumulation_steps(global_batch_size, micro_batch_size, world_size)
    micro_batches: list[MicroBatchIndices] = []
    epoch, steps_left = 0, num_steps
    while steps_left > 0:
        for batch in make_global_batches(num_samples, global_batch_size, seed=seed, task=task, epoch=epoch)[
            :steps_left
        ]:
            rank_batches = batch.reshape(world_size, micro_batches_per_step, micro_batch_size)[rank]
            step = num_steps - steps_left
            micro_batches.extend(
                MicroBatchIndices(step, tuple(map(int, part)), i == micro_batches_per_step - 1)
                for i, part in enumerate(rank_batches)
            )
            steps_left -= 1
        epoch += 1
    return micro_batches


FILLER_ITEM = TrainItem("filler", "", [Image.new("RGB", (64, 64), "grey")], "-")
"""A sample that only makes the tower run."""


class MicroBatchDataset(Dataset[MicroBatch | LmmForgetError]):
    """Micro-batches by position, rendered and encoded when asked for."""

    def __init__(
        self,
        lmm: LMM,
        samples: Sequence[Any],
        micro_batch_indices: Sequence[MicroBatchIndices],
        *,
        needs_image: bool = False,
    ) -> None:
        """`samples[i]` is a `TrainItem`, a tuple like it, or an object with its attributes.

        With `needs_image` a micro-batch without one gets a row more, which shows a grey square; no loss counts
        in it. Ranks that share a sharded tower must all call it.
        """
        self._family, self._processor = lmm.family, lmm.processor
        self._samples, self._micro_batch_indices, self._needs_image = (
            samples,
            micro_batch_indices,
            needs_image,
        )

    def __len__(self) -> int:
        return len(self._micro_batch_indices)

    def __getitem__(self, position: int) -> MicroBatch | LmmForgetError:
        """The micro-batch, or the user's mistake that prevents it, for `checked` to raise."""
        try:
            return self._encode_micro_batch(self._micro_batch_indices[position])
        except LmmForgetError as error:
            return error

    def _encode_micro_batch(self, indices: MicroBatchIndices) -> MicroBatch:
        items = [to_train_item(self._samples[i]) for i in indices.sample_indices]
        if self._needs_image and not any(len(item.images) for item in items):
            items.append(FILLER_ITEM)
        try:
            encoded = self._encode_items(items)
        except DataError:
            self._raise_for_failing_item(items)
            raise
        assert encoded.labels is not None
        return MicroBatch(indices, encoded.tensors, encoded.labels)

    def _encode_items(self, items: Sequence[TrainItem]) -> EncodedInputs:
        return self._family.encode_batch(
            self._processor,
            [item.question for item in items],
            [list(item.images) for item in items],
            [item.answer for item in items],
            [item.system for item in items],
        )

    def _raise_for_failing_item(self, items: Sequence[TrainItem]) -> None:
        """Raise the mistake of the first sample that cannot be encoded, with its id."""
        for item in items:
            try:
                self._encode_items([item])
            except DataError as error:
                reason = str(error).removeprefix("sample 0 of the batch: ")
                raise DataError(f"training sample {item.id}: {reason}") from None


def to_train_item(sample: Any) -> TrainItem:
    """A `TrainItem` of a tuple like it, or of an object with its attributes (`system` may be missing)."""
    if isinstance(sample, tuple):
        return TrainItem(*sample)
    system = getattr(sample, "system", None)
    return TrainItem(sample.id, sample.question, sample.images, sample.answer, system)


def make_data_loader(
    lmm: LMM,
    samples: Sequence[Any],
    micro_batch_indices: Sequence[MicroBatchIndices],
    *,
    num_workers: int,
    seed: int,
    needs_image: bool = False,
) -> DataLoader[Any]:
    """Encoded micro-batches in order; `workers` 0 renders and encodes in this process. See `MicroBatchDataset`."""
    return DataLoader(
        MicroBatchDataset(lmm, samples, micro_batch_indices, needs_image=needs_image),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_identity,
        generator=torch.Generator().manual_seed(derive_seed(seed, "loader")),
        persistent_workers=False,
    )


def unwrap_micro_batch(result: MicroBatch | LmmForgetError) -> MicroBatch:
    """The micro-batch, or its error raised here (raised in a worker it would not stay one line)."""
    if isinstance(result, LmmForgetError):
        raise result
    return result


def _identity(result: Any) -> Any:
    return result
