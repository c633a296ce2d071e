"""One stage's training: a fresh Lightning Trainer around a StageModule, the same bytes every time."""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.progress import NullProgress, Progress
from lmm_forget.stopping import at_safe_points
from lmm_forget.training.batches import accumulation, global_batches, loader, slots
from lmm_forget.training.determinism import derived_seed, repeatable_kernels, seed_everything
from lmm_forget.training.loggers import log_training
from lmm_forget.training.module import Optimization, StageModule
from lmm_forget.training.precision import Compute, refuse_pure_bf16
from lmm_forget.training.resume import Resume, Saved, layout, restore_masters
from lmm_forget.training.undisturbed import undisturbed

if TYPE_CHECKING:
    from lmm_forget.models.loading import LMM
    from lmm_forget.recipes.method import Method
    from lmm_forget.recipes.selection import TunePlan
    from lmm_forget.tracking import Tracker

LOG_EVERY = 10
"""Optimizer steps between logged rows; the first and the last step are always logged."""


@dataclass(frozen=True)
class FitResult:
    """What a fit did: optimizer steps, loss of each, peak learning rate, samples per forward pass and in all.

    `dropped` counts samples left out of each epoch as an incomplete global batch; `seconds` is wall-clock
    time of this process. `resumed` is the step that a saved state was taken up at (None: trained in one go), `exact`
    whether that gave the same bytes as training in one go (same threads, devices, torch, processor). `stopped` is the
    number of steps after which `after_step` ended the stage, None if it went to its end.
    """

    steps: int
    loss: list[float]
    learning_rate: float
    micro_batch: int
    samples: int
    dropped: int
    seconds: float
    resumed: int | None = None
    exact: bool = True
    stopped: int | None = None


def fit(
    lmm: LMM,
    plan: TunePlan,
    method: Method,
    samples: Sequence[Any],
    *,
    training: Mapping[str, Any],
    hardware: Mapping[str, Any],
    seed: int,
    task: str,
    logger: Tracker | None = None,
    progress: Progress | None = None,
    phase: str | None = None,
    resume: Resume | None = None,
    after_step: Callable[[int], bool] | None = None,
) -> FitResult:
    """Train what `method.prepare` made trainable on `samples` (see `EncodedSlots`), in place.

    `training.max_steps` optimizer steps over as many epochs as they take, else `training.epochs` epochs.
    Everything random is seeded from (`seed`, `task`), so nothing depends on what ran before. A
    `hardware.micro_batch` above the global batch counts as the global batch. `phase` is the name shown to
    people (default: "teach <task>"). With `resume` a saved state is taken up where there is one (with its
    micro-batch), and states are saved on the way. The model stays on its device, in eval mode and with its masters:
    `method.finish` comes next.

    `after_step(finished steps)` may look at the model, which it sees as a stage model (see `undisturbed`), and
    ends the stage there by returning True; the schedule is that of the whole stage all the same.

    Raises ConfigError for settings that cannot be used, DataError for samples that cannot, PlanError when
    nothing is trainable, LmmForgetError when the loss stops being finite.
    """
    progress = progress or NullProgress()
    began = time.perf_counter()
    refuse_pure_bf16(training, hardware)
    _one_device(hardware)
    if not any(p.requires_grad for p in lmm.model.parameters()):
        raise PlanError(
            f"recipe {plan.recipe}: nothing in the model is trainable; call method.prepare(lmm, plan) first"
        )
    if hardware.get("threads"):
        torch.set_num_threads(int(hardware["threads"]))
    steps = total_steps(len(samples), training, seed=seed, task=task)
    opt = Optimization.from_config(training, steps)
    found = resume.safe.load() if resume else None
    saved = Saved.of(found) if found else None
    if saved is not None:
        restore_masters(lmm.model, saved.tensors)
    done = saved.step if saved else 0
    micro_batch = min(int(hardware.get("micro_batch") or opt.global_batch), opt.global_batch)
    micro_batch = saved.micro_batch if saved else micro_batch
    parts = accumulation(opt.global_batch, micro_batch, 1)
    order = slots(
        len(samples),
        steps=steps,
        global_batch=opt.global_batch,
        micro_batch=micro_batch,
        seed=seed,
        task=task,
    )[done * parts :]
    stage_seed = derived_seed(seed, task)
    data = loader(lmm, samples, order, workers=int(hardware.get("workers") or 0), seed=stage_seed)
    progress.phase(phase or f"teach {task}", steps, "step")
    if done:
        progress.advance(done)

    stopped: list[int] = []

    def heard(step: int, figures: dict[str, float]) -> bool:
        progress.advance(1, loss=figures["loss"], samples_per_s=figures["samples_per_s"])
        if step % LOG_EVERY == 0 or step == steps - 1:
            log_training(logger, task, step + 1, figures)
        if after_step is None:
            return False
        with undisturbed(cast(nn.Module, lmm.model), compute):
            stop = after_step(step + 1)
        if stop:
            stopped.append(step + 1)
        return stop

    home = next(lmm.model.parameters()).device
    checkpoint = {info.name: info.dtype for info in lmm.components}
    with quiet_lightning(), keep_interrupts():
        trainer = _trainer(hardware)
        device_type = trainer.strategy.root_device.type
        seed_everything(stage_seed)
        compute = Compute(lmm.model, str(hardware.get("precision") or "bf16"), device_type, checkpoint)
        with (
            repeatable_kernels(device_type),
            compute,
            training_mode(lmm, bool(hardware.get("activation_checkpointing"))),
            attention_dropout(lmm, training.get("attention_dropout")),
        ):
            module = StageModule(
                lmm,
                method,
                opt,
                compute,
                on_step=heard,
                resume=resume,
                saved=saved,
                micro_batch=micro_batch,
            )
            try:
                if order:  # nothing is left to do when only the record was missing
                    with at_safe_points() if resume else nullcontext():
                        trainer.fit(module, data)
            finally:
                cast(nn.Module, lmm.model).to(home)
    losses = module.losses
    del trainer, module  # they refer to each other and to the optimizer's states
    gc.collect()
    used = len(losses) * opt.global_batch
    return FitResult(
        steps=len(losses),
        loss=losses,
        learning_rate=opt.learning_rate,
        micro_batch=micro_batch,
        samples=used,
        dropped=len(samples) % opt.global_batch,
        seconds=time.perf_counter() - began,
        resumed=done or None,
        exact=saved is None or saved.layout == layout(1),
        stopped=stopped[0] if stopped else None,
    )


def total_steps(n: int, training: Mapping[str, Any], *, seed: int = 0, task: str = "training") -> int:
    """Optimizer steps of a stage over `n` samples: `max_steps` where set, else whole global batches times
    `epochs`.

    Raises ConfigError for fewer samples than one global batch, and for numbers of steps or epochs below 1.
    """
    per_epoch = len(global_batches(n, int(training["global_batch"]), seed=seed, task=task, epoch=0))
    limit, epochs = training.get("max_steps"), training.get("epochs")
    name, value = ("max_steps", limit) if limit is not None else ("epochs", 1 if epochs is None else epochs)
    if int(value) != value or int(value) < 1:
        raise ConfigError(f"training.{name}={value}: must be a whole number of at least 1")
    return int(value) if limit is not None else per_epoch * int(value)


def _one_device(hardware: Mapping[str, Any]) -> None:
    devices, nodes = hardware.get("devices") or 1, hardware.get("nodes") or 1
    many = len(devices) if isinstance(devices, Sequence) and not isinstance(devices, str) else devices
    if many not in (1, "1", "auto") or int(nodes) != 1:
        raise ConfigError(
            f"hardware.devices={devices}, hardware.nodes={nodes}: a job trains on one device; "
            "give each job of a sweep its own device instead (hardware.devices=1)"
        )


def _trainer(hardware: Mapping[str, Any]) -> pl.Trainer:
    """A Trainer that only loops: precision, order, checkpoints, logs and bars are this package's own."""
    accelerator = hardware.get("accelerator") or "auto"
    try:
        return pl.Trainer(
            accelerator=accelerator,
            devices=1,
            num_nodes=1,
            precision="32-true",
            max_epochs=1,
            logger=False,
            plugins=[LightningEnvironment()],  # one process, also inside a Slurm allocation
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"hardware.accelerator={accelerator} cannot be used here: {reason}") from None


@contextmanager
def training_mode(lmm: LMM, activation_checkpointing: bool) -> Iterator[None]:
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
        for module in lmm.components.modules(component):
            module.train(_any_trainable(module))
    if activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        if activation_checkpointing:
            model.gradient_checkpointing_disable()
        model.eval()


@contextmanager
def attention_dropout(lmm: LMM, share: float | None) -> Iterator[None]:
    """Drop `share` of the decoder's attention weights in the block; None leaves the checkpoint's own setting.

    Raises ConfigError for a decoder whose attention has no such setting.
    """
    blocks: list[Any] = [m for m in lmm.components.text_model.modules() if hasattr(m, "attention_dropout")]
    if share is None:
        yield
        return
    if not blocks:
        raise ConfigError(
            f"training.attention_dropout={share}: this model's attention has no dropout; use null"
        )
    before = [block.attention_dropout for block in blocks]
    for block in blocks:
        block.attention_dropout = share
    try:
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            block.attention_dropout = own


def _any_trainable(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's own remarks (devices found, tips, missing validation); other people's warnings
    stay.
    """
    names = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning(_utilities|_fabric|\.|$)")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def keep_interrupts() -> Iterator[None]:
    """Let Ctrl-C stay a KeyboardInterrupt: Lightning turns it into an exit and goes deaf to the next one."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if main and before is not None:
            signal.signal(signal.SIGINT, before)
