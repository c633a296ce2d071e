"""The whole configuration of a job, as one frozen object with a class per group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmm_forget.config.schema.hardware_settings import CallbackSettings, HardwareSettings, LoggerSettings, SweepSettings
from lmm_forget.config.schema.model_settings import ModelSettings
from lmm_forget.config.schema.node_reading import build_settings, check_fields_known, check_values
from lmm_forget.config.schema.probe_settings import ProbeSettings, check_probe_choices, is_probing
from lmm_forget.config.schema.setting import Effect, group, list_settings, setting
from lmm_forget.config.schema.training_settings import (
    DataSettings,
    RecipeSettings,
    SequenceSettings,
    SuiteSettings,
    TaskSettings,
    TrainingSettings,
)
from lmm_forget.config.schema.value_rules import ANYTHING, TEXT, choice, mapping, whole_number
from lmm_forget.errors import ConfigError

_GROUP = mapping("keys and values")
_BOTH = Effect.WEIGHTS | Effect.ANSWERS


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """A resolved configuration (job.yaml); `probe` is None for `probe=none`."""

    name: str = setting("folder of the run or sweep, multirun/<name>/", TEXT, Effect.NEITHER)
    seed: int = setting(
        "seed of batch order, dropout and data limits; the base's weights do not depend on it", whole_number(0)
    )
    store: str = setting(
        "archive of finished work; sweeps that name the same store share stages and answers", TEXT, Effect.NEITHER
    )
    objective: str = setting(
        "figure that a job hands back to an optimizing sweeper",
        choice("target_learning", "target_forgetting", "target_overall", "heldout_forgetting"),
        Effect.NEITHER,
    )
    checkpoint_every: int = setting(
        "optimizer steps between two resume points inside a stage", whole_number(1), Effect.NEITHER
    )
    snapshot: str = setting(
        "what a stage files in the store: delta (the tensors it moved) | full (every tensor)",
        choice("delta", "full"),
        Effect.NEITHER,
    )
    model: ModelSettings = group("the LMM that is trained", _GROUP, _BOTH, schema=ModelSettings)
    recipe: RecipeSettings = group("which parameters move, and how", _GROUP, schema=RecipeSettings)
    sequence: SequenceSettings = group(
        "which skills are trained, in which order", _GROUP, _BOTH, schema=SequenceSettings
    )
    suite: SuiteSettings = group(
        "the held-out benchmarks evaluated after every stage", _GROUP, Effect.ANSWERS, schema=SuiteSettings
    )
    training: TrainingSettings = group("optimizer, schedule, batch", _GROUP, _BOTH, schema=TrainingSettings)
    data: DataSettings = group(
        "which data task names refer to, limits, bad samples", _GROUP, _BOTH, schema=DataSettings
    )
    probe: ProbeSettings | None = group("what is measured inside the model", _GROUP, _BOTH, schema=ProbeSettings)
    hardware: HardwareSettings = group("device, precision, threads, jobs", _GROUP, _BOTH, schema=HardwareSettings)
    callbacks: CallbackSettings = group(
        "what runs beside the training steps; one of your own counts as changing weights",
        _GROUP,
        _BOTH,
        schema=CallbackSettings,
    )
    logger: LoggerSettings = group("where training curves go", _GROUP, Effect.NEITHER, schema=LoggerSettings)
    sweep: SweepSettings = group("what a command does with its jobs", _GROUP, Effect.NEITHER, schema=SweepSettings)
    tasks: Mapping[str, TaskSettings] = group(
        "changes to single tasks, e.g. +tasks.ai2d.max_new_tokens=4; resolved: every task of sequence and suite",
        ANYTHING,
        _BOTH,
        item_schema=TaskSettings,
        default_factory=dict,
    )

    @classmethod
    def from_resolved(cls, config: Mapping[str, Any]) -> JobConfig:
        """The typed form of what `resolve_config` returns or a job.yaml holds. Raises ConfigError."""
        check_job_config(config)
        built: JobConfig = build_settings(
            cls, {**config, "probe": config["probe"] if is_probing(config["probe"]) else None}
        )
        return built


REQUIRED_GROUPS = tuple(
    name for name, each in list_settings(JobConfig).items() if each.schema is not None and name != "sweep"
)
"""Groups of which exactly one choice is in every configuration."""


def check_job_config(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first field of a resolved configuration that does not exist or cannot be used.

    Groups that hold fields of their classes' own (model, recipe, sequence, suite, tasks) may have others.
    """
    checked = dict(config) if is_probing(config["probe"]) else {k: v for k, v in config.items() if k != "probe"}
    check_fields_known(JobConfig, checked)
    check_values(JobConfig, checked, optional_groups=("probe",))
    check_probe_choices(config["probe"], config["sequence"]["tasks"])
    hardware = config["hardware"]
    if hardware["strategy"] == "fsdp" and hardware["devices"] * hardware["nodes"] == 1:
        raise ConfigError(
            "hardware.strategy=fsdp shares a model among devices, but this job has one; "
            "set hardware.devices=2 or more, or hardware.strategy=auto"
        )
    if hardware["strategy"] == "single" and hardware["devices"] * hardware["nodes"] > 1:
        raise ConfigError(
            f"hardware.strategy=single is one device, but this job has {hardware['devices'] * hardware['nodes']}; "
            "set hardware.strategy=auto, ddp or fsdp"
        )
