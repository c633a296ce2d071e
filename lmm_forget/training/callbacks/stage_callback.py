"""The hooks that this package's callbacks use beside Lightning's, and how callbacks are made from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from omegaconf import OmegaConf

from lmm_forget.config.conf_dirs import find_conf_dir
from lmm_forget.config.instantiation import instantiate_config
from lmm_forget.errors import ConfigError
from lmm_forget.training.stage_module import StageModule


class StageCallback(pl.Callback):
    """A Lightning callback that hears of whole optimizer steps instead of micro-batches.

    Lightning's own hooks work as well; in `on_train_batch_end` the `outputs` of the last micro-batch of a step hold
    `step` (from 0), `loss` and `metrics`, those of all others are empty. `module.config` is the TrainStageConfig.
    """

    def on_stage_start(self, module: StageModule) -> None:
        """Called once, before Lightning starts; also where a saved state leaves no step to do."""

    def on_optimizer_step_end(self, trainer: pl.Trainer, module: StageModule, metrics: Mapping[str, float]) -> None:
        """Called on every rank after each optimizer step; `module.steps_done` counts this one.

        `metrics` holds loss, learning_rate, grad_norm and samples_per_s.
        """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Call `on_optimizer_step_end` behind the last micro-batch of a step."""
        if outputs:
            self.on_optimizer_step_end(trainer, pl_module, outputs["metrics"])  # type: ignore[arg-type]


def build_callbacks(callbacks_config: Mapping[str, Any] | None = None) -> list[pl.Callback]:
    """The callbacks of a `callbacks` node ({name: {_target_: …}}), in its order; None: conf/callbacks/default.yaml.

    Nodes that are null are left out. Raises ConfigError for one that names no Lightning callback.
    """
    if callbacks_config is None:
        packaged: Any = OmegaConf.to_container(OmegaConf.load(find_conf_dir() / "callbacks" / "default.yaml"))
        callbacks_config = packaged
    return [
        instantiate_config(node, pl.Callback, f"callbacks.{name}", ConfigError)
        for name, node in (callbacks_config or {}).items()
        if node is not None
    ]
