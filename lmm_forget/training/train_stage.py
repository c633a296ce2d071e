"""One stage's training: a fresh Lightning Trainer around a StageModule, the same bytes every time."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from lmm_forget.distributed.stop_signals import StopRequested, defer_stop_requests
from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.models.loading import LMM
from lmm_forget.recipes.method import Method
from lmm_forget.recipes.selection import TunePlan
from lmm_forget.training.callbacks.probes import StepProbes
from lmm_forget.training.callbacks.stage_callback import StageCallback, build_callbacks
from lmm_forget.training.determinism import derive_seed, prefer_deterministic_kernels, seed_everything
from lmm_forget.training.lightning_trainer import (
    make_trainer,
    preserve_keyboard_interrupt,
    resolve_device_type,
    silence_lightning,
)
from lmm_forget.training.micro_batches import (
    count_accumulation_steps,
    make_data_loader,
    make_global_batches,
    make_micro_batch_indices,
)
from lmm_forget.training.optimization import OptimizerConfig
from lmm_forget.training.precision import PrecisionContext, refuse_pure_bf16
from lmm_forget.training.stage_config import FitResult, TrainStageConfig
from lmm_forget.training.stage_module import StageModule
from lmm_forget.training.strategies.stage_strategy import StageStrategy, build_strategy
from lmm_forget.training.train_state import (
    TrainState,
    describe_topology,
    get_method_tensors,
    load_train_state,
    restore_masters,
)
from lmm_forget.training.training_mode import override_attention_dropout, set_training_mode


def train_stage(
    lmm: LMM, plan: TunePlan, method: Method, samples: Sequence[Any], config: TrainStageConfig
) -> FitResult:
    """Train what `method.start_stage` made trainable on `samples` (see `MicroBatchDataset`), in place.

    `training.max_steps` optimizer steps over as many epochs as they take, else `training.epochs` epochs.
    Everything random is seeded from (`config.seed`, `config.task`), so nothing depends on what ran before. A
    `hardware.micro_batch_size` above a rank's share of the global batch counts as that share. With a `resume_config`
    training goes on from a saved state where there is one (with its micro-batch if that is the smaller one), and
    states are saved on the way. The model stays on its device, in eval mode and with its masters:
    `method.end_stage` comes next.

    `config.step_probe` sees the model as a stage model (see `eval_snapshot`), on the first rank, and ends the stage
    by returning True; the schedule is that of the whole stage all the same. With several ranks each takes its share of
    every global batch (`hardware.strategy`); the model is the same on all of them afterwards. A step that runs out of
    memory is repeated with smaller micro-batches.

    Raises ConfigError for settings that cannot be used, DataError for samples that cannot, PlanError when
    nothing is trainable, LmmForgetError when the loss stops being finite, StopRequested when the process was asked to
    stop.
    """
    started_at = time.perf_counter()
    refuse_pure_bf16(config.training_config, config.hardware_config)
    if not any(p.requires_grad for p in lmm.model.parameters()):
        raise PlanError(
            f"recipe {plan.recipe}: nothing in the model is trainable; call method.start_stage(lmm, plan) first"
        )
    if config.hardware_config.get("threads"):
        torch.set_num_threads(int(config.hardware_config["threads"]))
    num_steps = count_total_steps(len(samples), config.training_config, seed=config.seed, task=config.task)
    optimizer_config = OptimizerConfig.from_config(config.training_config, num_steps)
    strategy = build_strategy(config.hardware_config, config.process_group)
    callbacks = _build_stage_callbacks(config)
    train_state = _restore_train_state(lmm, method, config)
    original_device = next(lmm.model.parameters()).device
    micro_batch_size, is_exact = _resolve_micro_batch_size(
        config, optimizer_config.global_batch_size, train_state, original_device.type
    )
    with silence_lightning(), preserve_keyboard_interrupt(), _prepare_training(lmm, config) as precision_context:
        module = StageModule(
            lmm,
            method,
            config,
            optimizer_config,
            precision_context,
            strategy,
            micro_batch_size=micro_batch_size,
            train_state=train_state,
            is_exact=is_exact,
        )
        try:
            _fit_until_done(module, samples, strategy, callbacks)
            module.unshard_model()
        finally:
            cast(nn.Module, lmm.model).to(original_device)
    result = FitResult(
        num_steps=module.steps_done,
        step_losses=module.losses,
        learning_rate=optimizer_config.learning_rate,
        micro_batch_size=module.micro_batch_size,
        num_samples=module.steps_done * optimizer_config.global_batch_size,
        dropped_per_epoch=len(samples) % optimizer_config.global_batch_size,
        seconds=time.perf_counter() - started_at,
        resumed_from_step=train_state.step or None if train_state else None,
        is_exact=module.is_exact,
        stopped_after_step=module.stopped_after_step,
    )
    del module  # it refers to the optimizer's states
    gc.collect()
    return result


def count_total_steps(
    num_samples: int, training_config: Mapping[str, Any], *, seed: int = 0, task: str = "training"
) -> int:
    """Optimizer steps of a stage over `n` samples: `max_steps` where set, else whole global batches times
    `epochs`.

    Raises ConfigError for fewer samples than one global batch, and for numbers of steps or epochs below 1.
    """
    per_epoch = len(
        make_global_batches(num_samples, int(training_config["global_batch_size"]), seed=seed, task=task, epoch=0)
    )
    max_steps, epochs = training_config.get("max_steps"), training_config.get("epochs")
    name, value = ("max_steps", max_steps) if max_steps is not None else ("epochs", 1 if epochs is None else epochs)
    if int(value) != value or int(value) < 1:
        raise ConfigError(f"training.{name}={value}: must be a whole number of at least 1")
    return int(value) if max_steps is not None else per_epoch * int(value)


def _build_stage_callbacks(config: TrainStageConfig) -> list[pl.Callback]:
    """The callbacks of the configuration. Raises ConfigError where one that the stage needs was taken out of it."""
    callbacks = [*build_callbacks(config.callbacks_config), *config.extra_callbacks]
    if config.step_probe is not None and not any(isinstance(callback, StepProbes) for callback in callbacks):
        raise ConfigError("the chosen probe needs callbacks.probes; put it back, or take probe=none")
    return callbacks


def _restore_train_state(lmm: LMM, method: Method, config: TrainStageConfig) -> TrainState | None:
    """Load the newest saved state, if there is one, and put its masters and the method's tensors back."""
    train_state = load_train_state(config.resume_config, config.process_group)
    if train_state is not None:
        restore_masters(lmm.model, train_state.tensors)
        method.load_resume_state(get_method_tensors(train_state.tensors))
    return train_state


def _resolve_micro_batch_size(
    config: TrainStageConfig, global_batch_size: int, train_state: TrainState | None, device_type: str
) -> tuple[int, bool]:
    """Samples per forward pass of a rank, and whether going on from `train_state` with them is bit-exact."""
    samples_per_rank = max(1, global_batch_size // config.process_group.size)
    micro_batch_size = min(int(config.hardware_config.get("micro_batch_size") or samples_per_rank), samples_per_rank)
    if train_state is None:
        return micro_batch_size, True
    has_same_topology = train_state.topology == describe_topology(config.process_group.size, device_type)
    if has_same_topology:  # a step may have run out of memory with a larger one
        micro_batch_size = min(micro_batch_size, train_state.micro_batch_size)
    has_same_size = train_state.micro_batch_size == micro_batch_size
    return micro_batch_size, train_state.is_exact and has_same_topology and has_same_size


@contextmanager
def _prepare_training(lmm: LMM, config: TrainStageConfig) -> Iterator[PrecisionContext]:
    """Seeds, kernels, precision and the model's modes, for as long as the stage is trained."""
    hardware_config, rank = config.hardware_config, config.process_group.rank
    device_type = resolve_device_type(hardware_config)
    stage_seed = derive_seed(config.seed, config.task)
    seed_everything(derive_seed(stage_seed, "rank", rank) if rank else stage_seed)
    checkpoint_dtypes = {info.name: info.dtype for info in lmm.components}
    precision = str(hardware_config.get("precision") or "bf16")
    precision_context = PrecisionContext(lmm.model, precision, device_type, checkpoint_dtypes)
    with (
        prefer_deterministic_kernels(device_type),
        precision_context,
        set_training_mode(lmm, bool(hardware_config.get("activation_checkpointing"))),
        override_attention_dropout(lmm, config.training_config.get("attention_dropout")),
    ):
        yield precision_context


def _fit_until_done(
    module: StageModule, samples: Sequence[Any], strategy: StageStrategy, callbacks: Sequence[pl.Callback]
) -> None:
    """Take all remaining steps; a fit that ended because a step ran out of memory goes on in a new one.

    No step is left where only the stage's record was missing. Raises StopRequested where training was interrupted.
    """
    config = module.config
    for callback in callbacks:
        if isinstance(callback, StageCallback):
            callback.on_stage_start(module)
    while not module.is_interrupted and module.stopped_after_step is None:
        micro_batches_per_step = count_accumulation_steps(
            int(config.training_config["global_batch_size"]), module.micro_batch_size, config.process_group.size
        )
        data_loader = _make_remaining_loader(module, samples, strategy, micro_batches_per_step)
        if data_loader is None:
            return
        trainer = make_trainer(
            config.hardware_config,
            config.process_group,
            strategy,
            callbacks,
            log_every_n_batches=micro_batches_per_step,
        )
        # So that trainer.global_step counts the steps of the whole stage.
        trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = module.steps_done
        module.needs_retry = False
        with defer_stop_requests() if config.resume_config else nullcontext():
            try:
                trainer.fit(module, data_loader)
            except MisconfigurationException as error:  # a callback of the user's cannot work here
                raise ConfigError(" ".join(str(error).split())) from error
        if not module.needs_retry:
            break
    if module.is_interrupted:
        raise StopRequested


def _make_remaining_loader(
    module: StageModule, samples: Sequence[Any], strategy: StageStrategy, micro_batches_per_step: int
) -> DataLoader[Any] | None:
    """This rank's micro-batches of the steps that are still to do; None if there are none."""
    config = module.config
    micro_batch_indices = make_micro_batch_indices(
        len(samples),
        num_steps=module.num_steps,
        global_batch_size=int(config.training_config["global_batch_size"]),
        micro_batch_size=module.micro_batch_size,
        seed=config.seed,
        task=config.task,
        rank=config.process_group.rank,
        world_size=config.process_group.size,
    )[module.steps_done * micro_batches_per_step :]
    if not micro_batch_indices:
        return None
    return make_data_loader(
        module.lmm,
        samples,
        micro_batch_indices,
        num_workers=int(config.hardware_config.get("num_workers") or 0),
        seed=derive_seed(config.seed, config.task),
        needs_image=strategy.needs_image_in_every_batch and _is_tower_trainable(module.lmm),
    )


def _is_tower_trainable(lmm: LMM) -> bool:
    modules = [m for component in ("vision", "projector") for m in lmm.components.get_modules(component)]
    return any(p.requires_grad for m in modules for p in m.parameters())
