"""Settings of where and how fast a job runs: the groups `hardware`, `logger`, `hydra/launcher` and `sweep`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmm_forget.config.schema.setting import Effect, OpenGroup, setting
from lmm_forget.config.schema.value_rules import (
    ANYTHING,
    BOOLEAN,
    TEXT_OR_NULL,
    choice,
    is_finite_number,
    is_whole_number,
    positive_number,
    rule,
    whole_number,
)

TIME_PATTERN = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
"""Slurm's own forms of a duration: minutes, hours:minutes:seconds, days-hours, …"""
NEITHER = Effect.NEITHER
_GPUS = rule(
    lambda value: value in ("auto", None) or (is_whole_number(value) and value >= 1),
    "a whole number of at least 1, or auto",
)
_TIME = rule(
    lambda value: (
        (is_whole_number(value) and value >= 1)
        or (isinstance(value, str) and TIME_PATTERN.fullmatch(value) is not None)
    ),
    "minutes, or a time as Slurm writes it, e.g. 12:00:00 or 1-06",
)
_SHELL_LINES = rule(
    lambda value: value is None or (isinstance(value, list | tuple) and all(isinstance(line, str) for line in value)),
    "a list of shell lines",
)
_SECONDS = rule(lambda value: is_finite_number(value) and value >= 0, "a number of seconds")


@dataclass(frozen=True, kw_only=True)
class HardwareSettings:
    """The `hardware` group: devices, precision, memory, processes."""

    accelerator: str = setting("what computes", choice("cpu", "gpu"))
    devices: int = setting("devices of one job on each machine, one process each", whole_number(1), NEITHER)
    nodes: int = setting(
        "machines of one job; more than 1 need torchrun or hydra/launcher=slurm", whole_number(1), NEITHER
    )
    strategy: str = setting(
        "how several devices share a job, the name of a YAML in conf/strategy: single (one device) | ddp (each holds"
        " the model) | fsdp (each holds a share of every tensor, FSDP2) | auto (ddp where there are several)",
        rule(lambda value: isinstance(value, str) and bool(value), "auto, or the name of a YAML in conf/strategy"),
        NEITHER,
    )
    strategy_config: Mapping[str, Any] | None = setting(
        "the YAML that hardware.strategy names; written, never set", ANYTHING, NEITHER, default=None
    )
    precision: str = setting(
        "compute of training: bf16 (autocast over fp32 masters) | fp32 | bf16-true (refused at small learning rates) |"
        " auto (bf16 where the hardware multiplies it, else fp32)",
        choice("auto", "bf16", "fp32", "bf16-true"),
    )
    micro_batch_size: int | str = setting(
        "samples per forward and backward pass of a device; auto: the model's value on a CPU or with fsdp, else the "
        "largest that fits, measured",
        whole_number(1, "auto"),
        NEITHER,
    )
    eval_batch_size: int = setting("questions per generate call of a device", whole_number(1), Effect.ANSWERS)
    activation_checkpointing: bool = setting("less memory, more time", BOOLEAN)
    compile: bool = setting("torch.compile: a slower start, then faster steps on a GPU", BOOLEAN)
    attention: str | None = setting(
        "attention implementation, moved to model.attention; null: the model's own",
        rule(
            lambda value: value is None or (isinstance(value, str) and bool(value)),
            "the name of an attention implementation, or null",
        ),
    )
    threads: int = setting("CPU threads of each process of a job", whole_number(1), NEITHER)
    num_workers: int = setting("data-loading workers per process", whole_number(0), NEITHER)
    max_parallel_jobs: int | str = setting(
        "jobs of a sweep that run side by side; auto: as many as the GPUs or cores carry",
        whole_number(1, "auto"),
        NEITHER,
    )


@dataclass(frozen=True, kw_only=True)
class CallbackSettings(OpenGroup):
    """The `callbacks` group: Lightning callbacks by name, each a node with `_target_` and its arguments."""


@dataclass(frozen=True, kw_only=True)
class LoggerSettings:
    """The `logger` group: where training curves go. All fields but `name` belong to `logger=wandb`."""

    name: str = setting("where training curves go", choice("csv", "wandb", "none"), NEITHER)
    project: str | None = setting("project of Weights & Biases", TEXT_OR_NULL, NEITHER, default="lmm-forget")
    entity: str | None = setting("team or user; null: your default", TEXT_OR_NULL, NEITHER, default=None)
    group: str | None = setting("group of the runs; null: the sweep's name", TEXT_OR_NULL, NEITHER, default=None)
    tags: tuple[Any, ...] = setting(
        "tags besides model, recipe and sequence",
        rule(lambda value: value is None or isinstance(value, list | tuple), "a list of tags"),
        NEITHER,
        default=(),
    )
    mode: str | None = setting(
        "online | offline (upload later with `wandb sync`) | disabled; null: WANDB_MODE, else online",
        choice("online", "offline", "disabled", optional=True),
        NEITHER,
        default=None,
    )
    answers: int = setting(
        "samples per task whose answers and pictures are shown after every stage", whole_number(0), NEITHER, default=0
    )
    artifacts: str | None = setting(
        "what is uploaded: none | records (what each stage was and gave) | all (the moved weights too)",
        choice("none", "records", "all", optional=True),
        NEITHER,
        default="records",
    )
    timeout: float = setting(
        "seconds that a job waits for W&B at its end, and for a connection",
        positive_number(unit="seconds"),
        NEITHER,
        default=30,
    )


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """The node `sweep`: what a command does with its jobs."""

    dry_run: bool = setting("print what would be trained and what is there already, and stop", BOOLEAN, NEITHER)
    submit_only: bool = setting(
        "with hydra/launcher=slurm: submit and return; `lmm-forget status` shows the jobs", BOOLEAN, NEITHER
    )


@dataclass(frozen=True, kw_only=True)
class IsolatedLauncherSettings:
    """`hydra/launcher=isolated`: every grid point in a process of its own on this machine."""

    grace: float = setting(
        "seconds a stopped job gets to come to a whole step and save before it is killed", _SECONDS, NEITHER, default=80
    )


@dataclass(frozen=True, kw_only=True)
class SlurmLauncherSettings:
    """`hydra/launcher=slurm`: every grid point as a Slurm job. None leaves a choice to the cluster."""

    time: int | str = setting(
        "limit of one start of a job, in minutes or as Slurm writes it; a longer job is requeued and goes on",
        _TIME,
        NEITHER,
        default=60,
    )
    partition: str | None = setting("partition of the cluster", TEXT_OR_NULL, NEITHER, default=None)
    account: str | None = setting("account that is charged", TEXT_OR_NULL, NEITHER, default=None)
    qos: str | None = setting("quality of service", TEXT_OR_NULL, NEITHER, default=None)
    constraint: str | None = setting("features of a node, e.g. h100", TEXT_OR_NULL, NEITHER, default=None)
    gpus_per_node: int | str | None = setting(
        "GPUs of a node; auto: one per device on hardware.accelerator=gpu", _GPUS, NEITHER, default="auto"
    )
    gres: str | None = setting("GPUs in the cluster's own words, e.g. gpu:h100:8", TEXT_OR_NULL, NEITHER, default=None)
    cpus_per_task: int | str = setting(
        "cores of a process; auto: hardware.threads + hardware.num_workers",
        whole_number(1, "auto"),
        NEITHER,
        default="auto",
    )
    mem: str | None = setting("memory of a node, e.g. 200G", TEXT_OR_NULL, NEITHER, default=None)
    signal: int = setting(
        "seconds before the time limit at which jobs are told to save and stop", whole_number(1), NEITHER, default=120
    )
    max_requeues: int = setting(
        "how often a job that ran out of time or was pre-empted goes back into the queue",
        whole_number(0),
        NEITHER,
        default=30,
    )
    array_parallelism: int = setting(
        "jobs of the sweep that Slurm may run at once", whole_number(1), NEITHER, default=256
    )
    setup: tuple[str, ...] = setting(
        "shell lines before a job starts, e.g. [module load cuda]", _SHELL_LINES, NEITHER, default=()
    )
    extra: Mapping[str, Any] = setting(
        "more options of sbatch, e.g. {mail-type: END}",
        rule(lambda value: value is None or isinstance(value, Mapping), "sbatch options, e.g. {reservation: night}"),
        NEITHER,
        default_factory=dict,
    )
    python: str | None = setting(
        "interpreter on the nodes; null: the one that submits", TEXT_OR_NULL, NEITHER, default=None
    )
    poll: float = setting(
        "seconds between two looks at the queue while the command waits",
        positive_number(unit="seconds"),
        NEITHER,
        default=5.0,
    )
