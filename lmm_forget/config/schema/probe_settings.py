"""Settings of the `probe` group, and what has to hold between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmm_forget.config.schema.setting import Effect, group, setting
from lmm_forget.config.schema.training_settings import TaskSettings
from lmm_forget.config.schema.value_rules import (
    ANYTHING,
    BOOLEAN,
    TEXT,
    choice,
    is_whole_number,
    list_of,
    mapping,
    positive_number,
    rule,
    whole_number,
)
from lmm_forget.errors import ConfigError

MODES = ("free", "forced")
TOKEN_SETS = ("number", "letter", "yes_no", "clock", "trained")
_EARLY_STOP = Effect.WEIGHTS | Effect.ANSWERS
"""Moves weights too where a drift alarm ends stages (on_alarm=stop and a bound)."""


@dataclass(frozen=True, kw_only=True)
class AlarmBounds:
    """`probe.stop_when`: bounds on the rise above the base, in forced mode; null: no bound."""

    number_mass: float | None = setting(
        "probability of numbers (0.10: ten points)", positive_number(None), _EARLY_STOP, default=None
    )
    letter_mass: float | None = setting(
        "probability of option letters", positive_number(None), _EARLY_STOP, default=None
    )
    yes_no_mass: float | None = setting("probability of yes and no", positive_number(None), _EARLY_STOP, default=None)
    clock_mass: float | None = setting("probability of clock times", positive_number(None), _EARLY_STOP, default=None)
    trained_mass: float | None = setting(
        "probability of the tokens learned from the answers of the task being trained",
        positive_number(None),
        _EARLY_STOP,
        default=None,
    )
    nll: float | None = setting(
        "negative log-likelihood of the reference, in nats", positive_number(None), _EARLY_STOP, default=None
    )
    kl: float | None = setting(
        "Kullback-Leibler divergence from the base, in nats", positive_number(None), _EARLY_STOP, default=None
    )
    js: float | None = setting(
        "Jensen-Shannon divergence from the base, in nats", positive_number(None), _EARLY_STOP, default=None
    )


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """The `probe` group: what is measured inside the model beside its answers. `probe=none` has a name alone."""

    name: str = setting("name in records", TEXT, Effect.ANSWERS)
    output_shift: bool = setting(
        "measure how far the next-token distribution moves away from the base's", BOOLEAN, Effect.ANSWERS
    )
    residual_to_logit: bool = setting(
        "measure which decoder blocks write the change of the logits", BOOLEAN, Effect.ANSWERS
    )
    prompts: tuple[str, ...] = setting(
        "tasks whose questions are the prompts",
        rule(lambda value: isinstance(value, list) and bool(value), "a list of tasks"),
        _EARLY_STOP,
    )
    n: int = setting("at most so many prompts of each task's test split", whole_number(1), _EARLY_STOP)
    modes: tuple[str, ...] = setting(
        "free: the model's own greedy answer; forced: every model is led along the same answer",
        list_of(*MODES, expected=f"a list of {' and '.join(MODES)}"),
        Effect.ANSWERS,
    )
    forced_on: str = setting(
        "answer of the forced mode: reference (the task's own) | base (what the base model said)",
        choice("reference", "base"),
        _EARLY_STOP,
    )
    token_sets: tuple[str, ...] = setting(
        "sets of tokens whose probability is measured; trained: one learned from the answers of each trained task",
        list_of(*TOKEN_SETS, expected=f"a list of some of {', '.join(TOKEN_SETS)}"),
        _EARLY_STOP,
    )
    residual_n: int = setting("samples of each prompt task for residual_to_logit", whole_number(1), Effect.ANSWERS)
    at_steps: tuple[int, ...] = setting(
        "optimizer steps of each stage after which the model is probed too, e.g. [1,10,100]",
        rule(
            lambda value: isinstance(value, list) and all(is_whole_number(step) and step >= 1 for step in value),
            "a list of optimizer steps, each a whole number of at least 1",
        ),
        Effect.ANSWERS,
    )
    at_tasks: tuple[str, ...] | None = setting(
        "stages in which at_steps counts, by the skill they train; null: every stage",
        rule(
            lambda value: value is None or (isinstance(value, list) and bool(value)),
            "a list of skills that are trained, or null",
        ),
        Effect.ANSWERS,
    )
    evaluate_at_steps: bool = setting("evaluate the whole suite at at_steps as well", BOOLEAN, Effect.ANSWERS)
    retrain: bool = setting(
        "a stored stage without its at_steps: train it once more for them (true) or leave it (false)",
        BOOLEAN,
        Effect.ANSWERS,
    )
    stop_when: AlarmBounds = group(
        "drift alarm: bounds on the rise above the base",
        mapping("bounds by name, e.g. {kl: 0.5}"),
        _EARLY_STOP,
        schema=AlarmBounds,
    )
    on_alarm: str = setting(
        "stop: the stage ends there, and is a stage of its own in the store; warn: it is only recorded",
        choice("stop", "warn"),
        _EARLY_STOP,
    )
    alarm_every: int = setting("optimizer steps between two checks of the alarm", whole_number(1), _EARLY_STOP)
    alarm_n: int = setting("prompts that the alarm is checked on", whole_number(1), _EARLY_STOP)
    tasks: Mapping[str, TaskSettings] = group(
        "YAMLs of prompts; written, never set", ANYTHING, _EARLY_STOP, item_schema=TaskSettings, default_factory=dict
    )


def is_probing(probe_config: Mapping[str, Any]) -> bool:
    """Whether a `probe` node asks for anything; `probe=none` has a name alone."""
    return "output_shift" in probe_config or "residual_to_logit" in probe_config


def check_probe_choices(probe_config: Mapping[str, Any], target_tasks: Sequence[str]) -> None:
    """Raise ConfigError where fields of a resolved `probe` node, each of them right, do not go together.

    `target_tasks` are the skills of the sequence.
    """
    if not is_probing(probe_config):
        return
    if not (probe_config["output_shift"] or probe_config["residual_to_logit"]):
        raise ConfigError("probe: neither output_shift nor residual_to_logit is on; use probe=none")
    if probe_config["at_tasks"] is not None and not {*probe_config["at_tasks"]} & {*target_tasks}:
        raise ConfigError(
            f"probe.at_tasks={probe_config['at_tasks']}: none of them is taught; the sequence has "
            f"{', '.join(target_tasks)}"
        )
    for name, bound in probe_config["stop_when"].items():
        label = str(name).removesuffix("_mass")
        if bound is not None and label in TOKEN_SETS and label not in probe_config["token_sets"]:
            raise ConfigError(f"probe.stop_when.{name} needs {label} in probe.token_sets")
