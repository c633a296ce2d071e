"""Lightning's part of every strategy with several ranks."""

from __future__ import annotations

from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy

from lmm_forget.distributed.process_group import ProcessGroup


class SharedMeshStrategy(ModelParallelStrategy):
    """Lightning's strategy for models that arrange themselves over ranks, on the job's own process group and mesh.

    Both are made once and serve every stage; Lightning would make a mesh anew for each of them. Whether anything is
    sharded is up to the StageStrategy.
    """

    def __init__(self, process_group: ProcessGroup) -> None:
        super().__init__(data_parallel_size=process_group.size, tensor_parallel_size=1)
        self._process_group = process_group

    def setup_environment(self) -> None:
        """Take the mesh that the job has already."""
        ParallelStrategy.setup_environment(self)
        self._setup_distributed()
        self._device_mesh = self._process_group.get_device_mesh(self.root_device.type)
