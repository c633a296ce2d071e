"""A Lightning Trainer that only loops: precision, order of samples and files are this package's own."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lmm_forget.errors import ConfigError
from lmm_forget.training.lightning_logger import TrackerLogger
from lmm_forget.training.strategies.single import SingleDeviceStage
from lmm_forget.training.strategies.stage_strategy import StageStrategy


def make_trainer(
    hardware_config: Mapping[str, Any],
    process_group: ProcessGroup,
    strategy: StageStrategy,
    callbacks: Sequence[pl.Callback] = (),
    *,
    log_every_n_batches: int = 1,
) -> pl.Trainer:
    """The Trainer of one fit.

    Callbacks may log through Lightning every `log_every_n_batches` micro-batches; what they log goes to a
    TrackerLogger. Raises ConfigError for an accelerator that is not here, and for callbacks that Lightning refuses.
    """
    accelerator = hardware_config.get("accelerator") or "auto"
    try:
        return pl.Trainer(
            accelerator=accelerator,
            devices=process_group.local_size,
            num_nodes=process_group.size // process_group.local_size,
            strategy=strategy.make_lightning_strategy(),
            precision="32-true",
            max_epochs=1,
            callbacks=list(callbacks),
            logger=TrackerLogger(),
            log_every_n_steps=log_every_n_batches,
            # One process, also inside a Slurm allocation; or as many as somebody else has started.
            plugins=[TorchElasticEnvironment() if process_group.size > 1 else LightningEnvironment()],
            use_distributed_sampler=False,
            # True only where a callback saves: Lightning would add a checkpoint of its own otherwise.
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"hardware.accelerator={accelerator} cannot be used here: {reason}") from None


def resolve_device_type(hardware_config: Mapping[str, Any]) -> str:
    """`cuda` or `cpu`. Raises ConfigError for an accelerator that is not here."""
    return str(make_trainer(hardware_config, SINGLE_PROCESS, SingleDeviceStage()).strategy.root_device.type)


@contextmanager
def silence_lightning() -> Iterator[None]:
    """Silence Lightning's own remarks (devices found, tips, missing validation); warnings of others stay."""
    names = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities")
    previous_levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning(_utilities|_fabric|\.|$)")
            yield
    finally:
        for name, level in previous_levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def preserve_keyboard_interrupt() -> Iterator[None]:
    """Let Ctrl-C stay a KeyboardInterrupt: Lightning turns it into an exit and goes deaf to the next one."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    previous_handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if is_main_thread and previous_handler is not None:
            signal.signal(signal.SIGINT, previous_handler)
