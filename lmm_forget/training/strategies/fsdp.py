"""FSDP2: what is trained, its gradients and its optimizer states are cut over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from lmm_forget.models.loading import LMM
from lmm_forget.recipes.method import Method
from lmm_forget.training.loss_module import LossModule
from lmm_forget.training.precision import PrecisionContext
from lmm_forget.training.snapshot import eval_snapshot
from lmm_forget.training.strategies.sharded_model import ShardedModel
from lmm_forget.training.strategies.shared_mesh import SharedMeshStrategy
from lmm_forget.training.strategies.stage_strategy import StageStrategy


class ShardedStage(StageStrategy):
    """A sharded copy of the model is trained; `lmm.model` gets its trained tensors back when they are needed."""

    can_recover_from_oom = False  # the other ranks wait inside the forward pass for tensors that will not come
    needs_image_in_every_batch = True  # a sharded tower is gathered by all ranks or by none

    def __init__(self) -> None:
        self._sharded_model: ShardedModel | None = None

    def make_lightning_strategy(self) -> Strategy | str:
        """The job's own process group and mesh."""
        return SharedMeshStrategy(self.process_group)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Nothing: FSDP averages them in the backward pass."""

    def prepare_model(self, lmm: LMM, method: Method, device: torch.device) -> LossModule:
        """Cut what is trained over the ranks."""
        # Lightning moves what is trained; the stage's own model, which probes and teachers run, goes along.
        lmm.model.to(device)  # type: ignore[arg-type]
        mesh = self.process_group.get_device_mesh(device.type)["data_parallel"]
        self._sharded_model = ShardedModel(lmm, method, mesh)
        return self._sharded_model.loss_module

    @contextmanager
    def snapshot(self, lmm: LMM, method: Method, precision_context: PrecisionContext) -> Iterator[None]:
        """Gather the stage model's tensors into `lmm.model` for the block; what is gathered is computed on the way."""
        if self._sharded_model is None:
            with super().snapshot(lmm, method, precision_context):
                yield
            return
        with (
            self._sharded_model.gathered_model(_make_stage_tensor_function(lmm, method)),
            eval_snapshot(lmm.model, precision_context),
        ):
            yield

    def unshard_model(self, lmm: LMM, method: Method) -> None:
        """Gather what was trained into `lmm.model`, rounded where the method does nothing else with it."""
        if self._sharded_model is not None:
            transform = _make_stage_tensor_function(lmm, method) if method.is_rounding_only else None
            self._sharded_model.gather_into_model(transform)


def _make_stage_tensor_function(lmm: LMM, method: Method) -> Callable[[str, Tensor], Tensor]:
    """What the method makes of a master, in the checkpoint's dtype (adapters are in none and keep theirs)."""
    checkpoint_dtypes = {info.name: info.dtype for info in lmm.components}
    return lambda name, master: method.compute_stage_tensor(name, master, checkpoint_dtypes.get(name, master.dtype))
