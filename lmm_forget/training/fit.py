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

from lmm_forget.distributed.process_group import ALONE, Ranks
from lmm_forget.distributed.stop_signals import at_safe_points
from lmm_forget.errors import ConfigError, PlanError, StoreError
from lmm_forget.progress import NullProgress, Progress
from lmm_forget.training.batches import accumulation, global_batches, loader, slots
from lmm_forget.training.determinism import derived_seed, repeatable_kernels, seed_everything
from lmm_forget.training.loggers import log_training
from lmm_forget.training.module import AfterStep, StageModule
from lmm_forget.training.optimization import Optimization
from lmm_forget.training.precision import Compute, refuse_pure_bf16
from lmm_forget.training.resume import Resume, Saved, layout, restore_masters

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
    after_step: AfterStep | None = None,
    ranks: Ranks = ALONE,
) -> FitResult:
    """Train what `method.prepare` made trainable on `samples` (see `EncodedSlots`), in place.

    `training.max_steps` optimizer steps over as many epochs as they take, else `training.epochs` epochs.
    Everything random is seeded from (`seed`, `task`), so nothing depends on what ran before. A
    `hardware.micro_batch` above a rank's share of the global batch counts as that share. `phase` is the name shown to
    people (default: "teach <task>"). With `resume` a saved state is taken up where there is one (with its
    micro-batch if that is the smaller one), and states are saved on the way. The model stays on its device, in eval
    mode and with its masters:
    `method.finish` comes next.

    `after_step(finished steps)` may look at the model, which it sees as a stage model (see `undisturbed`), and
    ends the stage there by returning True; the schedule is that of the whole stage all the same.

    With several `ranks` each takes its share of every global batch (`hardware.strategy`: ddp keeps everything on every
    rank, fsdp cuts what is trained); the model is the same on all of them afterwards. `after_step` looks on the first.
    A step that runs out of memory is taken again with smaller micro-batches.

    Raises ConfigError for settings that cannot be used, DataError for samples that cannot, PlanError when
    nothing is trainable, LmmForgetError when the loss stops being finite.
    """
    progress = progress or NullProgress()
    began = time.perf_counter()
    refuse_pure_bf16(training, hardware)
    if not any(p.requires_grad for p in lmm.model.parameters()):
        raise PlanError(
            f"recipe {plan.recipe}: nothing in the model is trainable; call method.prepare(lmm, plan) first"
        )
    if hardware.get("threads"):
        torch.set_num_threads(int(hardware["threads"]))
    steps = total_steps(len(samples), training, seed=seed, task=task)
    opt = Optimization.from_config(training, steps)
    shard = ranks.size > 1 and hardware.get("strategy") == "fsdp"
    saved = _saved(resume, ranks)
    if saved is not None:
        restore_masters(lmm.model, saved.tensors)
    done = saved.step if saved else 0
    share = max(1, opt.global_batch // ranks.size)
    micro_batch = min(int(hardware.get("micro_batch") or share), share)
    here = layout(ranks.size, next(lmm.model.parameters()).device.type)
    if saved is not None and saved.layout == here:
        micro_batch = min(
            micro_batch, saved.micro_batch
        )  # a step may have run out of memory with a larger one
    exact = saved is None or (saved.exact and saved.layout == here and saved.micro_batch == micro_batch)
    stage_seed = derived_seed(seed, task)
    tower_moves = any(
        p.requires_grad
        for c in ("vision", "projector")
        for m in lmm.components.modules(c)
        for p in m.parameters()
    )

    def batches(micro_batch: int, done: int) -> DataLoader[Any] | None:
        """This rank's micro-batches from step `done` on; None if no step is left."""
        parts = accumulation(opt.global_batch, micro_batch, ranks.size)
        order = slots(
            len(samples),
            steps=steps,
            global_batch=opt.global_batch,
            micro_batch=micro_batch,
            seed=seed,
            task=task,
            rank=ranks.rank,
            world=ranks.size,
        )[done * parts :]
        workers = int(hardware.get("workers") or 0)
        whole = shard and tower_moves
        made = loader(lmm, samples, order, workers=workers, seed=stage_seed, always_a_picture=whole)
        return made if order else None

    progress.phase((phase or f"teach {task}") + (f" from step {done}" if done else ""), steps, "step")
    if done:
        progress.advance(done)

    def heard(step: int, figures: dict[str, float]) -> None:
        progress.advance(1, loss=figures["loss"], samples_per_s=figures["samples_per_s"])
        if step % LOG_EVERY == 0 or step == steps - 1:
            log_training(logger, task, step + 1, figures)

    home = next(lmm.model.parameters()).device
    checkpoint = {info.name: info.dtype for info in lmm.components}
    with quiet_lightning(), keep_interrupts():
        device_type = _device_type(hardware)
        seed_everything(derived_seed(stage_seed, "rank", ranks.rank) if ranks.rank else stage_seed)
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
                exact=exact,
                seed=stage_seed,
                ranks=ranks,
                shard=shard,
                compiled=bool(hardware.get("compile")),
                after_step=after_step,
            )
            try:
                module.look_first()
                # Nothing is left to do when only the record was missing; a fit that ran out of memory goes on in a
                # new one.
                while (
                    module.stopped is None
                    and (data := batches(module.micro_batch, len(module.losses))) is not None
                ):
                    module.repeat = False
                    with at_safe_points() if resume else nullcontext():
                        _trainer(hardware, ranks).fit(module, data)
                    if not module.repeat:
                        break
                module.hand_back()
            finally:
                cast(nn.Module, lmm.model).to(home)
    losses, micro_batch, stopped, exact = module.losses, module.micro_batch, module.stopped, module.exact
    del module  # it refers to the optimizer's states
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
        exact=exact,
        stopped=stopped,
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


def _saved(resume: Resume | None, ranks: Ranks) -> Saved | None:
    """The state to go on from, the same on every rank; the first one decides which it is and moves damaged ones aside.

    Raises StoreError where a rank does not see the first one's state.
    """
    if resume is None:
        return None

    def read() -> Saved | None:
        found = resume.safe.load()
        return Saved.of(found) if found else None

    if ranks.size == 1:
        return read()
    first = [read()] if ranks.first else [None]
    step = ranks.on_first(lambda: first[0].step if first[0] else None)
    if step is None:
        return None
    own = first[0] or read()
    if ranks.any(own is None or own.step != step):
        raise StoreError(
            f"the state saved after step {step} is not seen by every rank; the store must lie on a file system that "
            "all machines of a job share"
        )
    return own


def _device_type(hardware: Mapping[str, Any]) -> str:
    """`cuda` or `cpu`. Raises ConfigError for an accelerator that is not here."""
    return str(_trainer(hardware, ALONE).strategy.root_device.type)


def _trainer(hardware: Mapping[str, Any], ranks: Ranks) -> pl.Trainer:
    """A Trainer that only loops: precision, order, checkpoints, logs and bars are this package's own."""
    accelerator = hardware.get("accelerator") or "auto"
    try:
        return pl.Trainer(
            accelerator=accelerator,
            devices=ranks.local_size,
            num_nodes=ranks.size // ranks.local_size,
            strategy=SharedMesh(ranks) if ranks.size > 1 else "auto",
            precision="32-true",
            max_epochs=1,
            logger=False,
            # One process, also inside a Slurm allocation; or as many as somebody else has started.
            plugins=[TorchElasticEnvironment() if ranks.size > 1 else LightningEnvironment()],
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"hardware.accelerator={accelerator} cannot be used here: {reason}") from None


class SharedMesh(ModelParallelStrategy):
    """Lightning's strategy for models that arrange themselves over ranks, on the job's own process group and mesh.

    Both are made once and serve every stage; Lightning would make a mesh anew for each of them. Whether anything is
    sharded is up to the module: without, all ranks hold the same model, and its gradients are averaged (ddp).
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(data_parallel_size=ranks.size, tensor_parallel_size=1)
        self._ranks = ranks

    def setup_environment(self) -> None:
        """Take the mesh that is there."""
        ParallelStrategy.setup_environment(self)
        self._setup_distributed()
        self._device_mesh = self._ranks.mesh(self.root_device.type)


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
