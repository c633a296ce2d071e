"""One stage's training: a fresh Lightning Trainer around a StageModule, the same bytes every time."""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lmm_forget.distributed.stop_signals import defer_stop_requests
from lmm_forget.errors import ConfigError, PlanError, StoreError
from lmm_forget.progress import NullProgress, Progress
from lmm_forget.training.determinism import derive_seed, prefer_deterministic_kernels, seed_everything
from lmm_forget.training.micro_batches import (
    count_accumulation_steps,
    make_data_loader,
    make_global_batches,
    make_micro_batch_indices,
)
from lmm_forget.training.optimization import OptimizerConfig
from lmm_forget.training.precision import PrecisionContext, refuse_pure_bf16
from lmm_forget.training.stage_module import StageModule, StepCallback
from lmm_forget.training.step_logging import log_training_metrics
from lmm_forget.training.train_state import ResumeConfig, TrainState, describe_topology, restore_masters

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM
    from lmm_forget.recipes.method import Method
    from lmm_forget.recipes.selection import TunePlan
    from lmm_forget.tracking import Tracker

LOG_EVERY_STEPS = 10
"""Optimizer steps between logged rows; the first and the last step are always logged."""


@dataclass(frozen=True)
class FitResult:
    """What a fit did: optimizer steps, loss of each, peak learning rate, samples per forward pass and in all.

    `dropped` counts samples left out of each epoch as an incomplete global batch; `seconds` is wall-clock
    time of this process. `resumed` is the step that a saved state was taken up at (None: trained in one go), `exact`
    whether that gave the same bytes as training in one go (same threads, devices, torch, processor). `stopped` is the
    number of steps after which `step_callback` ended the stage, None if it went to its end.
    """

    num_steps: int
    step_losses: list[float]
    learning_rate: float
    micro_batch_size: int
    num_samples: int
    dropped_per_epoch: int
    seconds: float
    resumed_from_step: int | None = None
    is_exact: bool = True
    stopped_after_step: int | None = None


def train_stage(
    lmm: LMM,
    plan: TunePlan,
    method: Method,
    samples: Sequence[Any],
    *,
    training_config: Mapping[str, Any],
    hardware_config: Mapping[str, Any],
    seed: int,
    task: str,
    tracker: Tracker | None = None,
    progress: Progress | None = None,
    phase_name: str | None = None,
    resume_config: ResumeConfig | None = None,
    step_callback: StepCallback | None = None,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> FitResult:
    """Train what `method.prepare` made trainable on `samples` (see `MicroBatchDataset`), in place.

    `training.max_steps` optimizer steps over as many epochs as they take, else `training.epochs` epochs.
    Everything random is seeded from (`seed`, `task`), so nothing depends on what ran before. A
    `hardware.micro_batch_size` above a rank's share of the global batch counts as that share. `phase` is the name
    shown to people (default: "train <task>"). With `resume` a saved state is taken up where there is one (with its
    micro-batch if that is the smaller one), and states are saved on the way. The model stays on its device, in eval
    mode and with its masters:
    `method.finish` comes next.

    `step_callback(finished steps)` may look at the model, which it sees as a stage model (see `undisturbed`), and
    ends the stage there by returning True; the schedule is that of the whole stage all the same.

    With several `ranks` each takes its share of every global batch (`hardware.strategy`: ddp keeps everything on every
    rank, fsdp cuts what is trained); the model is the same on all of them afterwards. `step_callback` looks on the
    first. A step that runs out of memory is taken again with smaller micro-batches.

    Raises ConfigError for settings that cannot be used, DataError for samples that cannot, PlanError when
    nothing is trainable, LmmForgetError when the loss stops being finite.
    """
    progress = progress or NullProgress()
    started_at = time.perf_counter()
    refuse_pure_bf16(training_config, hardware_config)
    if not any(p.requires_grad for p in lmm.model.parameters()):
        raise PlanError(
            f"recipe {plan.recipe}: nothing in the model is trainable; call method.prepare(lmm, plan) first"
        )
    if hardware_config.get("threads"):
        torch.set_num_threads(int(hardware_config["threads"]))
    steps = count_total_steps(len(samples), training_config, seed=seed, task=task)
    optimizer_config = OptimizerConfig.from_config(training_config, steps)
    is_sharded = process_group.size > 1 and hardware_config.get("strategy") == "fsdp"
    train_state = _load_train_state(resume_config, process_group)
    if train_state is not None:
        restore_masters(lmm.model, train_state.tensors)
    steps_done = train_state.step if train_state else 0
    samples_per_rank = max(1, optimizer_config.global_batch_size // process_group.size)
    micro_batch_size = min(int(hardware_config.get("micro_batch_size") or samples_per_rank), samples_per_rank)
    topology = describe_topology(process_group.size, next(lmm.model.parameters()).device.type)
    if train_state is not None and train_state.topology == topology:
        micro_batch_size = min(
            micro_batch_size, train_state.micro_batch_size
        )  # a step may have run out of memory with a larger one
    is_exact = train_state is None or (
        train_state.is_exact and train_state.topology == topology and train_state.micro_batch_size == micro_batch_size
    )
    stage_seed = derive_seed(seed, task)
    is_tower_trainable = any(
        p.requires_grad for c in ("vision", "projector") for m in lmm.components.get_modules(c) for p in m.parameters()
    )

    def make_remaining_loader(micro_batch_size: int, steps_done: int) -> DataLoader[Any] | None:
        """This rank's micro-batches from step `done` on; None if no step is left."""
        micro_batches_per_step = count_accumulation_steps(
            optimizer_config.global_batch_size, micro_batch_size, process_group.size
        )
        remaining_indices = make_micro_batch_indices(
            len(samples),
            num_steps=steps,
            global_batch_size=optimizer_config.global_batch_size,
            micro_batch_size=micro_batch_size,
            seed=seed,
            task=task,
            rank=process_group.rank,
            world_size=process_group.size,
        )[steps_done * micro_batches_per_step :]
        num_workers = int(hardware_config.get("num_workers") or 0)
        needs_image = is_sharded and is_tower_trainable
        data_loader = make_data_loader(
            lmm, samples, remaining_indices, num_workers=num_workers, seed=stage_seed, needs_image=needs_image
        )
        return data_loader if remaining_indices else None

    progress.start_phase(
        (phase_name or f"train {task}") + (f" from step {steps_done}" if steps_done else ""), steps, "step"
    )
    if steps_done:
        progress.advance(steps_done)

    def report_step(step: int, metrics: dict[str, float]) -> None:
        progress.advance(1, loss=metrics["loss"], samples_per_s=metrics["samples_per_s"])
        if step % LOG_EVERY_STEPS == 0 or step == steps - 1:
            log_training_metrics(tracker, task, step + 1, metrics)

    original_device = next(lmm.model.parameters()).device
    checkpoint_dtypes = {info.name: info.dtype for info in lmm.components}
    with silence_lightning(), preserve_keyboard_interrupt():
        device_type = _resolve_device_type(hardware_config)
        seed_everything(derive_seed(stage_seed, "rank", process_group.rank) if process_group.rank else stage_seed)
        precision_context = PrecisionContext(
            lmm.model, str(hardware_config.get("precision") or "bf16"), device_type, checkpoint_dtypes
        )
        with (
            prefer_deterministic_kernels(device_type),
            precision_context,
            set_training_mode(lmm, bool(hardware_config.get("activation_checkpointing"))),
            override_attention_dropout(lmm, training_config.get("attention_dropout")),
        ):
            module = StageModule(
                lmm,
                method,
                optimizer_config,
                precision_context,
                on_step_end=report_step,
                resume_config=resume_config,
                train_state=train_state,
                micro_batch_size=micro_batch_size,
                is_exact=is_exact,
                seed=stage_seed,
                process_group=process_group,
                is_sharded=is_sharded,
                use_compile=bool(hardware_config.get("compile")),
                step_callback=step_callback,
            )
            try:
                module.run_callback_before_fit()
                # Nothing is left to do when only the record was missing; a fit that ran out of memory goes on in a
                # new one.
                while (
                    module.stopped_after_step is None
                    and (data := make_remaining_loader(module.micro_batch, len(module.losses))) is not None
                ):
                    module.needs_retry = False
                    with defer_stop_requests() if resume_config else nullcontext():
                        _make_trainer(hardware_config, process_group).fit(module, data)
                    if not module.needs_retry:
                        break
                module.unshard_model()
            finally:
                cast(nn.Module, lmm.model).to(original_device)
    losses, micro_batch_size, stopped_after_step, is_exact = (
        module.losses,
        module.micro_batch,
        module.stopped_after_step,
        module.exact,
    )
    del module  # it refers to the optimizer's states
    gc.collect()
    num_samples = len(losses) * optimizer_config.global_batch_size
    return FitResult(
        num_steps=len(losses),
        step_losses=losses,
        learning_rate=optimizer_config.learning_rate,
        micro_batch_size=micro_batch_size,
        num_samples=num_samples,
        dropped_per_epoch=len(samples) % optimizer_config.global_batch_size,
        seconds=time.perf_counter() - started_at,
        resumed_from_step=steps_done or None,
        is_exact=is_exact,
        stopped_after_step=stopped_after_step,
    )


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


def _load_train_state(resume_config: ResumeConfig | None, process_group: ProcessGroup) -> TrainState | None:
    """The state to go on from, the same on every rank; the first one decides which it is and moves damaged ones aside.

    Raises StoreError where a rank does not see the first one's state.
    """
    if resume_config is None:
        return None

    def load_latest() -> TrainState | None:
        stored_state = resume_config.state_store.load_latest()
        return TrainState.from_stored(stored_state) if stored_state else None

    if process_group.size == 1:
        return load_latest()
    first_rank_state = [load_latest()] if process_group.is_rank_zero else [None]
    step = process_group.broadcast_from_rank_zero(lambda: first_rank_state[0].step if first_rank_state[0] else None)
    if step is None:
        return None
    local_state = first_rank_state[0] or load_latest()
    if process_group.is_true_on_any_rank(local_state is None or local_state.step != step):
        raise StoreError(
            f"the state saved after step {step} is not seen by every rank; the store must lie on a file system that "
            "all machines of a job share"
        )
    return local_state


def _resolve_device_type(hardware_config: Mapping[str, Any]) -> str:
    """`cuda` or `cpu`. Raises ConfigError for an accelerator that is not here."""
    return str(_make_trainer(hardware_config, SINGLE_PROCESS).strategy.root_device.type)


def _make_trainer(hardware_config: Mapping[str, Any], process_group: ProcessGroup) -> pl.Trainer:
    """A Trainer that only loops: precision, order, checkpoints, logs and bars are this package's own."""
    accelerator = hardware_config.get("accelerator") or "auto"
    try:
        return pl.Trainer(
            accelerator=accelerator,
            devices=process_group.local_size,
            num_nodes=process_group.size // process_group.local_size,
            strategy=SharedMeshStrategy(process_group) if process_group.size > 1 else "auto",
            precision="32-true",
            max_epochs=1,
            logger=False,
            # One process, also inside a Slurm allocation; or as many as somebody else has started.
            plugins=[TorchElasticEnvironment() if process_group.size > 1 else LightningEnvironment()],
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"hardware.accelerator={accelerator} cannot be used here: {reason}") from None


class SharedMeshStrategy(ModelParallelStrategy):
    """Lightning's strategy for models that arrange themselves over ranks, on the job's own process group and mesh.

    Both are made once and serve every stage; Lightning would make a mesh anew for each of them. Whether anything is
    sharded is up to the module: without, all ranks hold the same model, and its gradients are averaged (ddp).
    """

    def __init__(self, process_group: ProcessGroup) -> None:
        super().__init__(data_parallel_size=process_group.size, tensor_parallel_size=1)
        self._process_group = process_group

    def setup_environment(self) -> None:
        """Take the mesh that is there."""
        ParallelStrategy.setup_environment(self)
        self._setup_distributed()
        self._device_mesh = self._process_group.get_device_mesh(self.root_device.type)


@contextmanager
def set_training_mode(lmm: LMM, use_activation_checkpointing: bool) -> Iterator[None]:
    """Put what gradients pass through into training mode, keep wholly frozen towers and projectors
    deterministic.

    The decoder always lies on the gradients' way. Activations are recomputed without re-entering autograd
    where asked for. Afterwards the whole model is in eval mode.
    """
    model: Any = lmm.model
    model.eval()
    lmm.components.text_model.train()
    model.get_output_embeddings().train()
    for component in ("vision", "projector"):
        for module in lmm.components.get_modules(component):
            module.train(_has_trainable_parameter(module))
    if use_activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        if use_activation_checkpointing:
            model.gradient_checkpointing_disable()
        model.eval()


@contextmanager
def override_attention_dropout(lmm: LMM, dropout_rate: float | None) -> Iterator[None]:
    """Drop `share` of the decoder's attention weights in the block; None leaves the checkpoint's own setting.

    Raises ConfigError for a decoder whose attention has no such setting.
    """
    blocks: list[Any] = [m for m in lmm.components.text_model.modules() if hasattr(m, "attention_dropout")]
    if dropout_rate is None:
        yield
        return
    if not blocks:
        raise ConfigError(f"training.attention_dropout={dropout_rate}: this model's attention has no dropout; use null")
    original_rates = [block.attention_dropout for block in blocks]
    for block in blocks:
        block.attention_dropout = dropout_rate
    try:
        yield
    finally:
        for block, original_rate in zip(blocks, original_rates, strict=True):
            block.attention_dropout = original_rate


def _has_trainable_parameter(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


@contextmanager
def silence_lightning() -> Iterator[None]:
    """Silence Lightning's own remarks (devices found, tips, missing validation); other people's warnings
    stay.
    """
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
