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
from lmm_forget.training.determinism import derived_seed

if TYPE_CHECKING:
    from lmm_forget.models.family import Encoded
    from lmm_forget.models.loading import LMM


class TrainItem(NamedTuple):
    """One training sample: the user's turn, its images, the answer that is taught, and the system prompt if any."""

    id: str
    question: str
    images: Sequence[Image.Image]
    answer: str
    system: str | None = None


@dataclass(frozen=True)
class Slot:
    """The samples of one micro-batch, which optimizer step they belong to, and whether they complete it."""

    step: int
    indices: tuple[int, ...]
    last: bool


@dataclass(frozen=True)
class MicroBatch:
    """Encoded samples: keyword arguments of the model, and labels [B, T] with -100 where no loss counts.

    Rows behind those of the slot's samples are fillers, whose loss counts nothing.
    """

    slot: Slot
    batch: dict[str, Tensor]
    labels: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on `device`."""
        moved = {k: v.to(device, non_blocking=True) for k, v in self.batch.items()}
        return MicroBatch(self.slot, moved, self.labels.to(device, non_blocking=True))


def global_batches(n: int, global_batch: int, *, seed: int, task: str, epoch: int) -> list[np.ndarray]:
    """Indices of the `n // global_batch` global batches of an epoch, each an int64 array [global_batch].

    The order is that of a hash of (seed, task, epoch, index), the same with every library version. The last
    incomplete batch, `n % global_batch` samples, is dropped. Raises ConfigError when not even one is
    complete.
    """
    if global_batch < 1:
        raise ConfigError(f"training.global_batch={global_batch}: must be at least 1")
    if n < global_batch:
        raise ConfigError(
            f"{task}: {n} training samples are fewer than one global batch; "
            f"use more samples or training.global_batch={max(n, 1)} or less"
        )
    prefix = f"{seed}\0{task}\0{epoch}\0"
    keys = [hashlib.blake2b(f"{prefix}{i}".encode(), digest_size=16).digest() for i in range(n)]
    order = np.array(sorted(range(n), key=keys.__getitem__), dtype=np.int64)
    return list(order[: n - n % global_batch].reshape(-1, global_batch))


def accumulation(global_batch: int, micro_batch: int, world: int) -> int:
    """Micro-batches per rank and optimizer step. Raises ConfigError naming valid sizes when they do not
    divide.
    """
    if world < 1 or global_batch % world:
        raise ConfigError(
            f"training.global_batch={global_batch} cannot be cut over {world} devices; "
            f"nearest that can: {_around([world * k for k in range(1, global_batch + 2)], global_batch)}"
        )
    share = global_batch // world
    if micro_batch < 1 or share % micro_batch:
        valid = [m for m in range(1, share + 1) if share % m == 0]
        raise ConfigError(
            f"hardware.micro_batch={micro_batch} does not divide the {share} samples of a device "
            f"(training.global_batch={global_batch} over {world}); "
            f"nearest that do: {_around(valid, micro_batch)}"
        )
    return share // micro_batch


def smaller(micro_batch: int, share: int) -> int | None:
    """The largest micro-batch of at most half of `micro_batch` that divides `share`; None below 1."""
    return next((size for size in range(micro_batch // 2, 0, -1) if share % size == 0), None)


def _around(valid: Sequence[int], wanted: int) -> str:
    below = [v for v in valid if v <= wanted][-1:]
    above = [v for v in valid if v > wanted][:1]
    return " or ".join(map(str, below + above))


def slots(
    n: int,
    *,
    steps: int,
    global_batch: int,
    micro_batch: int,
    seed: int,
    task: str,
    rank: int = 0,
    world: int = 1,
) -> list[Slot]:
    """All micro-batches of one rank, in order: `steps` optimizer steps over as many epochs as they take."""
    parts = accumulation(global_batch, micro_batch, world)
    found: list[Slot] = []
    epoch, left = 0, steps
    while left > 0:
        for batch in global_batches(n, global_batch, seed=seed, task=task, epoch=epoch)[:left]:
            mine = batch.reshape(world, parts, micro_batch)[rank]
            step = steps - left
            found.extend(Slot(step, tuple(map(int, part)), i == parts - 1) for i, part in enumerate(mine))
            left -= 1
        epoch += 1
    return found


FILLER = TrainItem("filler", "", [Image.new("RGB", (64, 64), "grey")], "-")
"""A sample that only makes the tower run."""


class EncodedSlots(Dataset[MicroBatch | LmmForgetError]):
    """Micro-batches by position, rendered and encoded when asked for."""

    def __init__(
        self, lmm: LMM, samples: Sequence[Any], slots: Sequence[Slot], *, always_a_picture: bool = False
    ) -> None:
        """`samples[i]` is a `TrainItem`, a tuple like it, or an object with its attributes.

        With `always_a_picture` a micro-batch without one gets a row more, which shows a grey square; no loss counts
        in it. Ranks that share a sharded tower must all call it.
        """
        self._family, self._processor = lmm.family, lmm.processor
        self._samples, self._slots, self._always = samples, slots, always_a_picture

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, position: int) -> MicroBatch | LmmForgetError:
        """The micro-batch, or the user's mistake that prevents it, for `checked` to raise."""
        try:
            return self._encode(self._slots[position])
        except LmmForgetError as error:
            return error

    def _encode(self, slot: Slot) -> MicroBatch:
        items = [as_item(self._samples[i]) for i in slot.indices]
        if self._always and not any(len(item.images) for item in items):
            items.append(FILLER)
        try:
            encoded = self._encoded(items)
        except DataError:
            self._name_culprit(items)
            raise
        assert encoded.labels is not None
        return MicroBatch(slot, encoded.batch, encoded.labels)

    def _encoded(self, items: Sequence[TrainItem]) -> Encoded:
        return self._family.encode(
            self._processor,
            [item.question for item in items],
            [list(item.images) for item in items],
            [item.answer for item in items],
            [item.system for item in items],
        )

    def _name_culprit(self, items: Sequence[TrainItem]) -> None:
        """Raise the mistake of the first sample that cannot be encoded, with its id."""
        for item in items:
            try:
                self._encoded([item])
            except DataError as error:
                reason = str(error).removeprefix("sample 0 of the batch: ")
                raise DataError(f"training sample {item.id}: {reason}") from None


def as_item(sample: Any) -> TrainItem:
    """A `TrainItem` of a tuple like it, or of an object with its attributes (`system` may be missing)."""
    if isinstance(sample, tuple):
        return TrainItem(*sample)
    system = getattr(sample, "system", None)
    return TrainItem(sample.id, sample.question, sample.images, sample.answer, system)


def loader(
    lmm: LMM,
    samples: Sequence[Any],
    slots: Sequence[Slot],
    *,
    workers: int,
    seed: int,
    always_a_picture: bool = False,
) -> DataLoader[Any]:
    """Encoded micro-batches in order; `workers` 0 renders and encodes in this process. See `EncodedSlots`."""
    return DataLoader(
        EncodedSlots(lmm, samples, slots, always_a_picture=always_a_picture),
        batch_size=None,
        num_workers=workers,
        collate_fn=_same,
        generator=torch.Generator().manual_seed(derived_seed(seed, "loader")),
        persistent_workers=False,
    )


def checked(found: MicroBatch | LmmForgetError) -> MicroBatch:
    """The micro-batch, or its error raised here (raised in a worker it would not stay one line)."""
    if isinstance(found, LmmForgetError):
        raise found
    return found


def _same(found: Any) -> Any:
    return found
