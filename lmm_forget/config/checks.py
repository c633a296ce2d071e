"""What each field may hold; every refusal names the field, the value and what would be right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lmm_forget.config.messages import closest
from lmm_forget.errors import ConfigError

OBJECTIVES = ("target_learning", "target_forgetting", "target_overall", "heldout_forgetting")
Test = Callable[[Any], bool]
MOST = 2**63
"""What any whole number of a configuration is below: what torch takes as a seed."""


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < MOST


def _number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and -MOST < value < MOST


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _or(test: Test, *others: Any) -> Test:
    return lambda value: any(value is other or value == other for other in others) or test(value)


_count: tuple[Test, str] = (lambda v: _whole(v, 1), "a whole number of at least 1")
_natural: tuple[Test, str] = (lambda v: _whole(v, 0), "a whole number of at least 0")
_limit: tuple[Test, str] = (_or(_count[0], None), "a whole number of at least 1, or null")
_rate: tuple[Test, str] = (_positive, "a number above 0")
_flag: tuple[Test, str] = (lambda v: isinstance(v, bool), "true or false")
_text: tuple[Test, str] = (lambda v: isinstance(v, str) and bool(v), "a text")


def _betas(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(_number(beta) and 0 <= beta < 1 for beta in value)
    )


FIELDS: dict[str, tuple[Test, str]] = {
    "seed": _natural,
    "store": _text,
    "checkpoint_every": _count,
    "training.global_batch": _count,
    "training.learning_rate": _rate,
    "training.vision_learning_rate": (_or(_positive, None), "a number above 0, or null"),
    "training.epochs": _rate,
    "training.max_steps": _limit,
    "training.warmup": (lambda v: _number(v) and 0 <= v < 1, "a share from 0 to below 1"),
    "training.weight_decay": (lambda v: _number(v) and v >= 0, "a number of at least 0"),
    "training.attention_dropout": (
        lambda v: v is None or (_number(v) and 0 <= v < 1),
        "a share from 0 to below 1, or null",
    ),
    "training.clip": (_or(_positive, None), "a number above 0, or null"),
    "training.betas": (_betas, "two numbers from 0 to below 1"),
    "data.train_samples": _limit,
    "data.eval_samples": _limit,
    "data.validation": _flag,
    "sweep.plan": _flag,
    "sweep.submit_only": _flag,
    "hardware.devices": _count,
    "hardware.nodes": _count,
    "hardware.micro_batch": (_or(_count[0], "auto"), "a whole number of at least 1, or auto"),
    "hardware.eval_batch": _count,
    "hardware.threads": _count,
    "hardware.workers": _natural,
    "hardware.jobs": (_or(_count[0], "auto"), "a whole number of at least 1, or auto"),
    "hardware.activation_checkpointing": _flag,
    "hardware.compile": _flag,
    "hardware.attention": (_or(_text[0], None), "the name of an attention implementation, or null"),
}

CHOICES: dict[str, tuple[str, ...]] = {
    "objective": OBJECTIVES,
    "training.loss": ("sample_mean", "token_mean"),
    "data.world": ("tiny", "real"),
    "snapshot": ("delta", "full"),
    "data.scoring": ("strict", "compat"),
    "data.on_bad_sample": ("fail", "skip"),
    "hardware.accelerator": ("cpu", "gpu"),
    "hardware.strategy": ("auto", "ddp", "fsdp"),
    "hardware.precision": ("auto", "bf16", "fp32", "bf16-true"),
}


GROUPS = ("model", "recipe", "sequence", "suite", "training", "data", "probe", "hardware", "logger")
"""Groups of which exactly one choice is in every configuration."""
_BESIDES = (*GROUPS, "sweep", "tasks", "name")
_RESOLVED = ("training.learning_rate_source",)  # written by the resolver, not by a user


def check(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first field that does not exist or whose value cannot be used.

    Only `training`, `data`, `hardware`, `sweep` and the top level are closed; other groups hold their classes' own
    fields.
    """
    for group in ("", "training", "data", "hardware", "sweep"):
        prefix = f"{group}." if group else ""
        known = [key.removeprefix(prefix) for key in (*FIELDS, *CHOICES, *_BESIDES) if key.startswith(prefix)]
        known = sorted({key for key in known if "." not in key})
        for key in config[group] if group else config:
            if key not in known and f"{prefix}{key}" not in _RESOLVED:
                where, hint = group or "the configuration", closest(str(key), known)
                raise ConfigError(f"there is no {prefix}{key}; {where} has: {', '.join(known)}{hint}")
    for key, allowed in CHOICES.items():
        value = _get(config, key)
        if value not in allowed:
            hint = closest(str(value), allowed)
            raise ConfigError(f"{key}={value} is not known; choose one of: {', '.join(allowed)}{hint}")
    for key, (test, right) in FIELDS.items():
        value = _get(config, key)
        if not test(value):
            most = " (and below 2^63)" if isinstance(value, int) and abs(value) >= MOST else ""
            raise ConfigError(
                f"{key}={'null' if value is None else value} cannot be used; it must be {right}{most}"
            )
    rules = config["recipe"].get("rules") or []
    if not isinstance(rules, list) or not all(isinstance(rule, Mapping) for rule in rules):
        raise ConfigError(
            f"recipe.rules={rules} must be a list of rules: [{{component: language, sublayers: [...]}}]"
        )
    _check_devices(config["hardware"])


def _check_devices(hardware: Mapping[str, Any]) -> None:
    """Raise ConfigError where devices and strategy do not go together."""
    if hardware["strategy"] == "fsdp" and hardware["devices"] * hardware["nodes"] == 1:
        raise ConfigError(
            "hardware.strategy=fsdp shares a model among devices, but this job has one; "
            "set hardware.devices=2 or more, or hardware.strategy=auto"
        )


def _get(config: Mapping[str, Any], key: str) -> Any:
    group, _, field = key.rpartition(".")
    node = config[group] if group else config
    if not isinstance(node, Mapping) or field not in node:
        raise ConfigError(f"the configuration lacks {key}; a {group or 'run'} YAML of your own must set it")
    return node[field]
