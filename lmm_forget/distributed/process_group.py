"""The processes that share one job: who they are, and how they agree.

Whoever starts them (the job itself, Slurm, torchrun) sets torchrun's variables: RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. A job on one device has none of them and is `ALONE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from lmm_forget.errors import LaunchError, LmmForgetError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a worker finds in its environment; torchrun's names."""
PATIENCE = timedelta(days=7)
"""How long a rank waits for another one that is at something only it can do, such as waiting for another job."""


@dataclass(frozen=True)
class Place:
    """One process among the `size` processes of a job, and among the `local_size` of its machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Place | None:
        """From the environment; None where nobody started this process as one of several.

        Raises LaunchError where only some of the variables are set, or not with numbers.
        """
        if env.get("WORLD_SIZE", "1") in ("", "1"):
            return None
        missing = [name for name in VARIABLES if not env.get(name)]
        if missing:
            raise LaunchError(
                f"WORLD_SIZE={env['WORLD_SIZE']} is set but not {', '.join(missing)}; "
                "start several processes with torchrun or Slurm, or one with none of these variables"
            )
        try:
            numbers = [int(env[name]) for name in VARIABLES[:4]]
        except ValueError as error:
            raise LaunchError(f"{', '.join(VARIABLES[:4])} must be whole numbers: {error}") from None
        return cls(numbers[0], numbers[1], numbers[2], numbers[3])


class Ranks:
    """The processes of a job, as one of them sees them. All must make the same calls in the same order."""

    def __init__(self, place: Place | None = None, control: Any = None) -> None:
        """`control` is a process group on the CPU whose collectives wait as long as it takes."""
        self.rank = place.rank if place else 0
        self.size = place.size if place else 1
        self.local_rank = place.local_rank if place else 0
        self.local_size = place.local_size if place else 1
        self._control = control
        self._meshes: dict[str, DeviceMesh] = {}

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and talks to people."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._control)
        return found

    def any(self, flag: bool) -> bool:
        """Whether it is true on some rank."""
        if self.size == 1:
            return flag
        import torch
        import torch.distributed as dist

        found = torch.tensor([int(flag)])
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._control)
        return bool(found.item())

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Everybody's numbers added up, one by one, in fp64."""
        if self.size == 1:
            return [float(number) for number in numbers]
        import torch
        import torch.distributed as dist

        total = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
        dist.all_reduce(total, group=self._control)
        return [float(number) for number in total]

    def on_first(self, work: Callable[[], T]) -> T:
        """What `work` returns on the first rank; the others wait for it. An LmmForgetError there is raised on all."""
        if self.size == 1:
            return work()
        import torch.distributed as dist

        found: list[Any] = [None, None]
        if self.first:
            try:
                found[0] = work()
            except LmmForgetError as error:
                found[1] = error
        dist.broadcast_object_list(found, src=0, group=self._control)
        if found[1] is not None:
            raise found[1]
        return found[0]

    def only_first(self, work: Callable[[], T]) -> T | None:
        """What `work` returns, on the first rank; the others wait for it and get None. Errors as with `on_first`."""
        kept: list[T] = []
        self.on_first(lambda: kept.append(work()))
        return kept[0] if kept else None

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns here; if it raises an LmmForgetError on some rank, all raise the first one."""
        if self.size == 1:
            return work()
        result: Any = None
        failure: LmmForgetError | None = None
        try:
            result = work()
        except LmmForgetError as error:
            failure = error
        failures = [one for one in self.gather(failure) if one is not None]
        if failures:
            raise failures[0]
        return result

    def same(self, value: str, what: str) -> None:
        """Raise LaunchError naming the ranks whose `value` is not the first rank's."""
        values = self.gather(value)
        odd = [str(rank) for rank, one in enumerate(values) if one != values[0]]
        if odd:
            raise LaunchError(
                f"rank {', '.join(odd)} of {self.size} has another {what} than rank 0; start all of them with the "
                "same command, version and files"
            )

    def mesh(self, device_type: str) -> DeviceMesh:
        """All ranks as a mesh of one dimension of data parallelism (and one of size 1, which Lightning asks for)."""
        if device_type not in self._meshes:
            from torch.distributed.device_mesh import init_device_mesh

            self._meshes[device_type] = init_device_mesh(
                device_type, (self.size, 1), mesh_dim_names=("data_parallel", "tensor_parallel")
            )
        return self._meshes[device_type]

    def leave(self) -> None:
        """End the process group; nothing can be agreed on afterwards."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


ALONE = Ranks()
"""A job in one process."""


def join(place: Place | None, accelerator: str) -> Ranks:
    """Meet the other processes of the job; `accelerator` is `cpu` or `gpu`. Returns when all are there."""
    if place is None:
        return ALONE
    import torch
    import torch.distributed as dist

    if accelerator == "gpu":
        torch.cuda.set_device(place.local_rank)
        device = torch.device("cuda", place.local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    return Ranks(place, dist.new_group(backend="gloo", timeout=PATIENCE))
