"""The interface of a strategy, and how one is made from the `hardware` node."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from lightning.pytorch.strategies import Strategy
from omegaconf import OmegaConf
from torch import nn

from lmm_forget.config.conf_dirs import find_conf_dir
from lmm_forget.config.instantiation import instantiate_config
from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lmm_forget.errors import ConfigError
from lmm_forget.models.loading import LMM
from lmm_forget.recipes.method import Method
from lmm_forget.training.loss_module import LossModule
from lmm_forget.training.precision import PrecisionContext
from lmm_forget.training.snapshot import eval_snapshot


class StageStrategy(ABC):
    """How the ranks of a job share one stage: what each of them holds, and how their gradients become one.

    Made anew for every stage, without arguments but those of its YAML; `process_group` is set before anything is
    called. The methods here are those of a strategy that keeps the whole model on every rank. All ranks call every
    method, in the same order.
    """

    can_recover_from_oom: ClassVar[bool] = True
    """Whether ranks can agree that one of them ran out of memory and repeat the step with smaller micro-batches."""

    needs_image_in_every_batch: ClassVar[bool] = False
    """Whether a trained vision tower must run in every micro-batch, also in one without images."""

    process_group: ProcessGroup = SINGLE_PROCESS

    @abstractmethod
    def make_lightning_strategy(self) -> Strategy | str:
        """What `lightning.pytorch.Trainer(strategy=…)` gets."""

    @abstractmethod
    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the ranks, in place, after the last micro-batch of a step."""

    def prepare_model(self, lmm: LMM, method: Method, device: torch.device) -> LossModule:
        """The module that is trained on `device`; called once, before the first step."""
        return LossModule(lmm, method)

    @contextmanager
    def snapshot(self, lmm: LMM, method: Method, precision_context: PrecisionContext) -> Iterator[None]:
        """Show `lmm.model` as the stage model it would be now, for the block (see `eval_snapshot`)."""
        with eval_snapshot(lmm.model, precision_context, method.compute_stage_tensor):
            yield

    def unshard_model(self, lmm: LMM, method: Method) -> None:  # noqa: B027
        """Put what was trained back into `lmm.model`, whole, after the last step."""


def build_strategy(hardware_config: Mapping[str, Any], process_group: ProcessGroup) -> StageStrategy:
    """The strategy of a `hardware` node, for the processes of `process_group`.

    `hardware.strategy` is `auto` (single or ddp, by the number of processes) or the name of a YAML in conf/strategy/;
    `hardware.strategy_config` is the content of that YAML where it was resolved already (it may be a user's own).
    Raises ConfigError for a name without a YAML, and for a YAML that names no StageStrategy.
    """
    name = str(hardware_config.get("strategy") or "auto")
    if name == "auto":
        name = "single" if process_group.size == 1 else "ddp"
    node = hardware_config.get("strategy_config")
    if node is None:
        path = find_conf_dir() / "strategy" / f"{name}.yaml"
        if not path.is_file():
            raise ConfigError(f"hardware.strategy={name}: there is no {path}")
        node = OmegaConf.to_container(OmegaConf.load(path))
    strategy: StageStrategy = instantiate_config(node, StageStrategy, f"hardware.strategy={name}", ConfigError)  # type: ignore[arg-type,type-abstract]
    strategy.process_group = process_group
    return strategy
