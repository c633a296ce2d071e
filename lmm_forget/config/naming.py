"""Names of jobs that stay the same from one command to the next, and what makes two configurations differ."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmm_forget.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
"""What a sweep may be called: safe as one folder's name."""

NOT_COMPARED = (
    "hardware.devices",
    "hardware.nodes",
    "hardware.strategy",
    "hardware.micro_batch",
    "hardware.workers",
    "hardware.threads",
    "hardware.jobs",
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


def swept(job_overrides: Sequence[str], given: Sequence[str]) -> dict[str, Any]:
    """The choices of one grid point that a sweep varies: key -> value.

    `job_overrides` are the grid point's; `given` are those of the command line and the sweeper's own, unexpanded.
    A key with one value in `given` is not a choice of the sweep, every other one is: those a sweeper invents, and
    those of an experiment's grid that the command line narrows to one value (the job keeps its name in the grid).
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    fixed = {_key(item) for item in parser.parse_overrides(list(given)) if not item.is_sweep_override()}
    varied = {_key(item) for item in parser.parse_overrides(list(given)) if item.is_sweep_override()}
    items = {_key(item): item.value() for item in parser.parse_overrides(list(job_overrides))}
    return {
        key: value
        for key, value in items.items()
        if key not in fixed - varied and not key.startswith("hydra.")
    }


def slug(choices: Mapping[str, Any], groups: Sequence[str]) -> str:
    """A grid point's folder name: chosen group values first, then `lastkey=value`, each sorted by key.

    `groups` are the keys that are config groups. Fields that share a last key are written with the whole dotted
    key; a value that is not safe as a file name is cleaned and followed by a short digest of what it was.
    """
    fields = sorted(key for key in choices if key not in groups)
    last = [key.rpartition(".")[2] for key in fields]
    parts = [_safe(choices[key]) for key in sorted(groups) if key in choices]
    for key, short in zip(fields, last, strict=True):
        parts.append(f"{short if last.count(short) == 1 else key}={_safe(choices[key])}")
    return "-".join(parts)


def single_name(config: Mapping[str, Any]) -> str:
    """Folder name of a run outside a sweep: recipe-sequence-seed."""
    sequence = config["sequence"]
    label = str(sequence["name"])
    if "order" in sequence:
        label += f"={_safe(sequence['order'])}"
    elif "task" in sequence:
        label += f"={_safe(sequence['task'])}"
    return f"{_safe(config['recipe']['name'])}-{label}-seed{config['seed']}"


def check_name(name: Any) -> str:
    """The sweep's name, if it can be a folder's. Raises ConfigError."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"name={name!r} cannot be a folder; use letters, digits and . _ - = +, starting with a letter or digit"
        )
    if len(name) > 200:
        raise ConfigError(f"name={name[:20]}… has {len(name)} characters; a folder's name may have 200")
    return name


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted fields in which two resolved configurations differ, as `field: old -> new`; NOT_COMPARED is left out."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    missing = object()
    lines = []
    for key in sorted({*before, *after}):
        if any(key == field or key.startswith(f"{field}.") for field in NOT_COMPARED):
            continue
        was, now = before.get(key, missing), after.get(key, missing)
        if was != now:
            lines.append(
                f"{key}: {'absent' if was is missing else _shown(was)} -> {'absent' if now is missing else _shown(now)}"
            )
    return lines


def _key(override: Any) -> str:
    return str(override.key_or_group).lstrip("+~")


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; lists and empty nodes are leaves."""
    if isinstance(node, Mapping) and (node or not prefix):
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, list(node) if isinstance(node, tuple) else node


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _safe(value: Any) -> str:
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
