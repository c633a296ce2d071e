"""What each field may hold; every refusal names the field, the value and what would be right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lmm_forget.config.error_messages import suggest_closest
from lmm_forget.errors import ConfigError

OBJECTIVES = ("target_learning", "target_forgetting", "target_overall", "heldout_forgetting")
ValueCheck = Callable[[Any], bool]
INTEGER_LIMIT = 2**63
"""What any whole number of a configuration is below: what torch takes as a seed."""


def _is_whole_number(value: Any, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value < INTEGER_LIMIT


def _is_finite_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and -INTEGER_LIMIT < value < INTEGER_LIMIT


def _is_positive_number(value: Any) -> bool:
    return _is_finite_number(value) and value > 0


def _accept_also(is_valid: ValueCheck, *accepted_values: Any) -> ValueCheck:
    return lambda value: any(value is other or value == other for other in accepted_values) or is_valid(value)


_POSITIVE_INT: tuple[ValueCheck, str] = (lambda v: _is_whole_number(v, 1), "a whole number of at least 1")
_NON_NEGATIVE_INT: tuple[ValueCheck, str] = (lambda v: _is_whole_number(v, 0), "a whole number of at least 0")
_POSITIVE_INT_OR_NULL: tuple[ValueCheck, str] = (
    _accept_also(_POSITIVE_INT[0], None),
    "a whole number of at least 1, or null",
)
_POSITIVE_NUMBER: tuple[ValueCheck, str] = (_is_positive_number, "a number above 0")
_BOOLEAN: tuple[ValueCheck, str] = (lambda v: isinstance(v, bool), "true or false")
_NON_EMPTY_TEXT: tuple[ValueCheck, str] = (lambda v: isinstance(v, str) and bool(v), "a text")


def _is_beta_pair(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(_is_finite_number(beta) and 0 <= beta < 1 for beta in value)
    )


FIELD_CHECKS: dict[str, tuple[ValueCheck, str]] = {
    "seed": _NON_NEGATIVE_INT,
    "store": _NON_EMPTY_TEXT,
    "checkpoint_every": _POSITIVE_INT,
    "training.global_batch_size": _POSITIVE_INT,
    "training.learning_rate": _POSITIVE_NUMBER,
    "training.vision_learning_rate": (_accept_also(_is_positive_number, None), "a number above 0, or null"),
    "training.epochs": _POSITIVE_NUMBER,
    "training.max_steps": _POSITIVE_INT_OR_NULL,
    "training.warmup_ratio": (lambda v: _is_finite_number(v) and 0 <= v < 1, "a share from 0 to below 1"),
    "training.weight_decay": (lambda v: _is_finite_number(v) and v >= 0, "a number of at least 0"),
    "training.attention_dropout": (
        lambda v: v is None or (_is_finite_number(v) and 0 <= v < 1),
        "a share from 0 to below 1, or null",
    ),
    "training.max_grad_norm": (_accept_also(_is_positive_number, None), "a number above 0, or null"),
    "training.betas": (_is_beta_pair, "two numbers from 0 to below 1"),
    "data.train_samples": _POSITIVE_INT_OR_NULL,
    "data.eval_samples": _POSITIVE_INT_OR_NULL,
    "data.validation": _BOOLEAN,
    "sweep.dry_run": _BOOLEAN,
    "sweep.submit_only": _BOOLEAN,
    "hardware.devices": _POSITIVE_INT,
    "hardware.nodes": _POSITIVE_INT,
    "hardware.strategy": (lambda v: isinstance(v, str), "auto, or the name of a YAML in conf/strategy/"),
    "hardware.micro_batch_size": (_accept_also(_POSITIVE_INT[0], "auto"), "a whole number of at least 1, or auto"),
    "hardware.eval_batch_size": _POSITIVE_INT,
    "hardware.threads": _POSITIVE_INT,
    "hardware.num_workers": _NON_NEGATIVE_INT,
    "hardware.max_parallel_jobs": (_accept_also(_POSITIVE_INT[0], "auto"), "a whole number of at least 1, or auto"),
    "hardware.activation_checkpointing": _BOOLEAN,
    "hardware.compile": _BOOLEAN,
    "hardware.attention": (
        _accept_also(_NON_EMPTY_TEXT[0], None),
        "the name of an attention implementation, or null",
    ),
}

FIELD_CHOICES: dict[str, tuple[str, ...]] = {
    "objective": OBJECTIVES,
    "training.loss": ("sample_mean", "token_mean"),
    "data.source": ("tiny", "real"),
    "snapshot": ("delta", "full"),
    "data.scoring": ("strict", "compat"),
    "data.on_bad_sample": ("fail", "skip"),
    "hardware.accelerator": ("cpu", "gpu"),
    "hardware.precision": ("auto", "bf16", "fp32", "bf16-true"),
}


REQUIRED_GROUPS = (
    "model",
    "recipe",
    "sequence",
    "suite",
    "training",
    "data",
    "probe",
    "hardware",
    "logger",
    "callbacks",
)
"""Groups of which exactly one choice is in every configuration."""
_OTHER_KEYS = (*REQUIRED_GROUPS, "sweep", "tasks", "name")
_RESOLVER_KEYS = ("training.learning_rate_source",)  # written by the resolver, not by a user


def check_config_fields(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first field that does not exist or whose value cannot be used.

    Only `training`, `data`, `hardware`, `sweep` and the top level are closed; other groups hold their classes' own
    fields.
    """
    for group in ("", "training", "data", "hardware", "sweep"):
        prefix = f"{group}." if group else ""
        known_keys = [
            key.removeprefix(prefix) for key in (*FIELD_CHECKS, *FIELD_CHOICES, *_OTHER_KEYS) if key.startswith(prefix)
        ]
        known_keys = sorted({key for key in known_keys if "." not in key})
        for key in config[group] if group else config:
            if key not in known_keys and f"{prefix}{key}" not in _RESOLVER_KEYS:
                where, hint = group or "the configuration", suggest_closest(str(key), known_keys)
                raise ConfigError(f"there is no {prefix}{key}; {where} has: {', '.join(known_keys)}{hint}")
    for key, allowed in FIELD_CHOICES.items():
        value = _get_field(config, key)
        if value not in allowed:
            hint = suggest_closest(str(value), allowed)
            raise ConfigError(f"{key}={value} is not known; choose one of: {', '.join(allowed)}{hint}")
    for key, (is_valid, expected) in FIELD_CHECKS.items():
        value = _get_field(config, key)
        if not is_valid(value):
            limit_note = " (and below 2^63)" if isinstance(value, int) and abs(value) >= INTEGER_LIMIT else ""
            raise ConfigError(
                f"{key}={'null' if value is None else value} cannot be used; it must be {expected}{limit_note}"
            )
    rules = config["recipe"].get("rules") or []
    if not isinstance(rules, list) or not all(isinstance(rule, Mapping) for rule in rules):
        raise ConfigError(f"recipe.rules={rules} must be a list of rules: [{{component: language, sublayers: [...]}}]")
    _check_strategy_devices(config["hardware"])


def _check_strategy_devices(hardware: Mapping[str, Any]) -> None:
    """Raise ConfigError where devices and strategy do not go together."""
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


def _get_field(config: Mapping[str, Any], key: str) -> Any:
    group, _, field = key.rpartition(".")
    node = config[group] if group else config
    if not isinstance(node, Mapping) or field not in node:
        raise ConfigError(f"the configuration lacks {key}; a {group or 'run'} YAML of your own must set it")
    return node[field]
