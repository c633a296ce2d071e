"""The processes that share one job: their ranks, and collective calls between them.

Whoever starts them (the job itself, Slurm, torchrun) sets torchrun's variables: RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. A job on one device has none of them and is `SINGLE_PROCESS`.
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

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a worker finds in its environment; torchrun's names."""
COLLECTIVE_TIMEOUT = timedelta(days=7)
"""How long a rank waits for another one, which may itself be waiting for another job."""


@dataclass(frozen=True)
class RankInfo:
    """One process among the `size` processes of a job, and among the `local_size` of its machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> RankInfo | None:
        """From the environment; None where nobody started this process as one of several.

        Raises LaunchError where only some of the variables are set, or not with numbers.
        """
        if environment.get("WORLD_SIZE", "1") in ("", "1"):
            return None
        missing = [name for name in RANK_VARIABLES if not environment.get(name)]
        if missing:
            raise LaunchError(
                f"WORLD_SIZE={environment['WORLD_SIZE']} is set but not {', '.join(missing)}; "
                "start several processes with torchrun or Slurm, or one with none of these variables"
            )
        try:
            numbers = [int(environment[name]) for name in RANK_VARIABLES[:4]]
        except ValueError as error:
            raise LaunchError(f"{', '.join(RANK_VARIABLES[:4])} must be whole numbers: {error}") from None
        return cls(numbers[0], numbers[1], numbers[2], numbers[3])


class ProcessGroup:
    """The processes of a job, as one of them sees them. All must make the same calls in the same order."""

    def __init__(self, rank_info: RankInfo | None = None, cpu_group: Any = None) -> None:
        """`cpu_group` is a torch process group on the CPU whose collectives wait as long as it takes."""
        self.rank = rank_info.rank if rank_info else 0
        self.size = rank_info.size if rank_info else 1
        self.local_rank = rank_info.local_rank if rank_info else 0
        self.local_size = rank_info.local_size if rank_info else 1
        self._cpu_group = cpu_group
        self._meshes: dict[str, DeviceMesh] = {}

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    @property
    def cpu_group(self) -> Any:
        """torch's process group for CPU tensors, whose collectives wait as long as it takes; None in one process."""
        return self._cpu_group

    def gather_values(self, value: T) -> list[T]:
        """The values of all ranks, by rank, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self._cpu_group)
        return gathered

    def is_true_on_any_rank(self, flag: bool) -> bool:
        """Whether it is true on some rank."""
        if self.size == 1:
            return flag
        import torch
        import torch.distributed as dist

        any_flag = torch.tensor([int(flag)])
        dist.all_reduce(any_flag, op=dist.ReduceOp.MAX, group=self._cpu_group)
        return bool(any_flag.item())

    def sum_over_ranks(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all ranks, number by number, in fp64."""
        if self.size == 1:
            return [float(number) for number in numbers]
        import torch
        import torch.distributed as dist

        total = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
        dist.all_reduce(total, group=self._cpu_group)
        return [float(number) for number in total]

    def broadcast_from_rank_zero(self, function: Callable[[], T]) -> T:
        """What `function` returns on rank 0; the others wait for it. An LmmForgetError there is raised on all."""
        if self.size == 1:
            return function()
        import torch.distributed as dist

        result_and_error: list[Any] = [None, None]
        if self.is_rank_zero:
            try:
                result_and_error[0] = function()
            except LmmForgetError as error:
                result_and_error[1] = error
        dist.broadcast_object_list(result_and_error, src=0, group=self._cpu_group)
        if result_and_error[1] is not None:
            raise result_and_error[1]
        return result_and_error[0]

    def run_on_rank_zero(self, function: Callable[[], T]) -> T | None:
        """What `function` returns, on rank 0; the others wait and get None. Errors as in broadcast_from_rank_zero."""
        results: list[T] = []
        self.broadcast_from_rank_zero(lambda: results.append(function()))
        return results[0] if results else None

    def raise_on_any_rank(self, function: Callable[[], T]) -> T:
        """What `function` returns here; if it raises an LmmForgetError on some rank, all raise the first one."""
        if self.size == 1:
            return function()
        result: Any = None
        failure: LmmForgetError | None = None
        try:
            result = function()
        except LmmForgetError as error:
            failure = error
        failures = [error_or_none for error_or_none in self.gather_values(failure) if error_or_none is not None]
        if failures:
            raise failures[0]
        return result

    def check_same_on_all_ranks(self, value: str, label: str) -> None:
        """Raise LaunchError naming the ranks whose `value` is not the first rank's."""
        values = self.gather_values(value)
        differing_ranks = [str(rank) for rank, rank_value in enumerate(values) if rank_value != values[0]]
        if differing_ranks:
            raise LaunchError(
                f"rank {', '.join(differing_ranks)} of {self.size} has another {label} than rank 0; start all "
                "of them with the "
                "same command, version and files"
            )

    def get_device_mesh(self, device_type: str) -> DeviceMesh:
        """All ranks as a mesh of one dimension of data parallelism (and one of size 1, which Lightning asks for)."""
        if device_type not in self._meshes:
            from torch.distributed.device_mesh import init_device_mesh

            self._meshes[device_type] = init_device_mesh(
                device_type, (self.size, 1), mesh_dim_names=("data_parallel", "tensor_parallel")
            )
        return self._meshes[device_type]

    def destroy_process_group(self) -> None:
        """End the process group; no collective call is possible afterwards."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


SINGLE_PROCESS = ProcessGroup()
"""A job in one process."""


def init_process_group(rank_info: RankInfo | None, accelerator: str) -> ProcessGroup:
    """Join the other processes of the job; `accelerator` is `cpu` or `gpu`. Returns when all have joined."""
    if rank_info is None:
        return SINGLE_PROCESS
    import torch
    import torch.distributed as dist

    if accelerator == "gpu":
        torch.cuda.set_device(rank_info.local_rank)
        device = torch.device("cuda", rank_info.local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    return ProcessGroup(rank_info, dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT))
