"""What probes have filed, as files: checked when it is read, and found by those who look after a store.

<store>/probes/<key>.json          a look's readings, or how an alarm went; under its own checksum
<store>/probes/<key>.parquet       a look's rows, one per prompt; its checksum stands in the JSON file
<store>/probes/<key>.safetensors   what the base wrote along some answers; hashes in its header, under a seal
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.files import file_checksum, sealed, unseal, usual_mode

if TYPE_CHECKING:
    from torch import Tensor

PROBES = "probes"
NOTE, ROWS, STATES = ".json", ".parquet", ".safetensors"
_SEALED = "sealed"


def filed(root: Path) -> dict[str, list[Path]]:
    """The files of everything that probes filed in the store at `root`, by key; what makes them whole comes first."""
    found: dict[str, list[Path]] = {}
    for suffix in (NOTE, STATES):
        for path in sorted(_children(root)):
            if path.suffix == suffix:
                rows = path.with_suffix(ROWS)
                found[path.stem] = [path, rows] if suffix == NOTE and rows.exists() else [path]
    return dict(sorted(found.items()))


def halves(root: Path) -> Iterator[Path]:
    """Drafts, and rows whose look was never finished."""
    for path in sorted((root / PROBES).iterdir()) if (root / PROBES).is_dir() else ():
        if path.name.startswith(".") or (path.suffix == ROWS and not path.with_suffix(NOTE).exists()):
            yield path


def check(path: Path) -> None:
    """Read everything filed with `path` (a JSON or a safetensors file). Raises OSError, ValueError, SafetensorError."""
    if path.suffix == STATES:
        load_states(path)
        return
    content = unseal(path.read_text(encoding="utf-8"))
    rows = path.with_suffix(ROWS)
    if "table" in content and file_checksum(rows) != content["table"]:
        raise ValueError(f"{rows.name} does not match its checksum")


def about(path: Path) -> str:
    """One line about what was filed with `path`."""
    if path.suffix == STATES:
        return "states of the base"
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "readings" in content:
            prompts = ", ".join(dict.fromkeys(str(reading["prompts"]) for reading in content["readings"]))
            scores = " and scores" if content["scores"] else ""
            return f"{len(content['readings'])} readings on {prompts}{scores}"
        if "alarm" in content:
            return f"alarm: {'silent' if content['alarm'] is None else content['alarm']['figure']}"
    return "cannot be read"


def save_states(path: Path, plan: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and JSON data `plan` as a safetensors file that appears whole or not at all."""
    from safetensors.torch import save_file

    from lmm_forget.models.weights import tensor_hash

    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    hashes = {name: tensor_hash(tensor) for name, tensor in whole.items()}
    header = sealed({"plan": dict(plan), "tensors": hashes}, indent=None)
    try:
        save_file(whole, fresh, metadata={_SEALED: header})
        usual_mode(fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def load_states(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save_states` wrote. Raises OSError, SafetensorError, or ValueError if a single bit of it changed."""
    from safetensors import safe_open

    from lmm_forget.models.weights import tensor_hash

    with safe_open(path, framework="pt") as file:
        content = unseal((file.metadata() or {}).get(_SEALED, "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if tensors.keys() != content["tensors"].keys():
        raise ValueError("it holds other tensors than its header says")
    for name, tensor in tensors.items():
        if tensor_hash(tensor) != content["tensors"][name]:
            raise ValueError(f"{name} does not match its checksum")
    return content["plan"], tensors


def _children(root: Path) -> list[Path]:
    try:
        return [path for path in (root / PROBES).iterdir() if not path.name.startswith(".")]
    except OSError:
        return []
