"""Names of jobs that stay the same from one command to the next, and what makes two configurations differ."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmm_forget.errors import ConfigError

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
"""What a sweep may be called: safe as one folder's name."""

UNCOMPARED_KEYS = (
    "hardware.devices",
    "hardware.nodes",
    "hardware.strategy",
    "hardware.strategy_config",
    "hardware.micro_batch_size",
    "hardware.num_workers",
    "hardware.threads",
    "hardware.max_parallel_jobs",
    "checkpoint_every",
    "logger",
    "name",
    "objective",
    "paths",
    "progress",
    "snapshot",
    "store",
    "sweep",
)
"""Fields that may change between two runs of the same job: they say where and how fast, not what."""


def find_swept_choices(job_overrides: Sequence[str], command_overrides: Sequence[str]) -> dict[str, Any]:
    """The choices of one grid point that a sweep varies: key -> value.

    `job_overrides` are the grid point's; `given` are those of the command line and the sweeper's own, unexpanded.
    A key with one value in `given` is not a choice of the sweep, every other one is: those a sweeper invents, and
    those of an experiment's grid that the command line narrows to one value (the job keeps its name in the grid).
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    fixed_keys = {
        _get_override_key(item)
        for item in parser.parse_overrides(list(command_overrides))
        if not item.is_sweep_override()
    }
    varied_keys = {
        _get_override_key(item) for item in parser.parse_overrides(list(command_overrides)) if item.is_sweep_override()
    }
    items = {_get_override_key(item): item.value() for item in parser.parse_overrides(list(job_overrides))}
    return {
        key: value
        for key, value in items.items()
        if key not in fixed_keys - varied_keys and not key.startswith("hydra.")
    }


def build_job_name(choices: Mapping[str, Any], group_names: Sequence[str]) -> str:
    """A grid point's folder name: chosen group values first, then `lastkey=value`, each sorted by key.

    `groups` are the keys that are config groups. Fields that share a last key are written with the whole dotted
    key; a value that is not safe as a file name is cleaned and followed by a short digest of what it was.
    """
    fields = sorted(key for key in choices if key not in group_names)
    last_keys = [key.rpartition(".")[2] for key in fields]
    parts = [_to_safe_file_name(choices[key]) for key in sorted(group_names) if key in choices]
    for key, short in zip(fields, last_keys, strict=True):
        parts.append(f"{short if last_keys.count(short) == 1 else key}={_to_safe_file_name(choices[key])}")
    return "-".join(parts)


def build_single_job_name(config: Mapping[str, Any]) -> str:
    """Folder name of a run outside a sweep: recipe-sequence-seed."""
    sequence = config["sequence"]
    label = str(sequence["name"])
    if "order" in sequence:
        label += f"={_to_safe_file_name(sequence['order'])}"
    elif "task" in sequence:
        label += f"={_to_safe_file_name(sequence['task'])}"
    return f"{_to_safe_file_name(config['recipe']['name'])}-{label}-seed{config['seed']}"


def check_sweep_name(name: Any) -> str:
    """The sweep's name, if it can be a folder's. Raises ConfigError."""
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise ConfigError(
            f"name={name!r} cannot be a folder; use letters, digits and . _ - = +, starting with a letter or digit"
        )
    if len(name) > 200:
        raise ConfigError(f"name={name[:20]}… has {len(name)} characters; a folder's name may have 200")
    return name


def list_config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted fields in which two resolved configurations differ, as `field: old -> new`; NOT_COMPARED is left out."""
    before, after = dict(_iterate_leaves(old)), dict(_iterate_leaves(new))
    missing = object()
    lines = []
    for key in sorted({*before, *after}):
        if any(key == field or key.startswith(f"{field}.") for field in UNCOMPARED_KEYS):
            continue
        old_value, new_value = before.get(key, missing), after.get(key, missing)
        if old_value != new_value:
            lines.append(
                f"{key}: {'absent' if old_value is missing else _format_value(old_value)} -> "
                f"{'absent' if new_value is missing else _format_value(new_value)}"
            )
    return lines


def _get_override_key(override: Any) -> str:
    return str(override.key_or_group).lstrip("+~")


def _iterate_leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; lists and empty nodes are leaves."""
    if isinstance(node, Mapping) and (node or not prefix):
        for key, value in node.items():
            yield from _iterate_leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, list(node) if isinstance(node, tuple) else node


def _format_value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _to_safe_file_name(value: Any) -> str:
    """A value as a part of a file name; stable, and different for different values."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, (int, str)) for item in value):
        value = ".".join(str(item) for item in value)
    text = str(value)
    clean = re.sub(r"[^A-Za-z0-9._+-]+", "_", text).strip("_")[:60]
    if clean == text:
        return text
    return f"{clean}~{hashlib.sha256(text.encode()).hexdigest()[:6]}"
