"""The files that probes save in the store, each with a checksum; store maintenance lists and verifies them.

<store>/probes/<key>.json          the readings of a probe result, or an alarm; with a checksum of its own
<store>/probes/<key>.parquet       the rows of a probe result, one per prompt; its checksum is in the JSON file
<store>/probes/<key>.safetensors   the base's hidden states along some answers; hashes in its header, with a checksum
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.files import (
    apply_default_permissions,
    compute_file_checksum,
    dump_json_with_checksum,
    load_json_with_checksum,
)

if TYPE_CHECKING:
    from torch import Tensor

PROBES_FOLDER = "probes"
JSON_SUFFIX, PARQUET_SUFFIX, SAFETENSORS_SUFFIX = ".json", ".parquet", ".safetensors"
_HEADER_KEY = "sealed"


def list_probe_files(store_root: Path) -> dict[str, list[Path]]:
    """The files of every complete entry in the store, by key; the file that was written last comes first."""
    files_by_key: dict[str, list[Path]] = {}
    for suffix in (JSON_SUFFIX, SAFETENSORS_SUFFIX):
        for path in sorted(_list_probe_paths(store_root)):
            if path.suffix == suffix:
                rows = path.with_suffix(PARQUET_SUFFIX)
                files_by_key[path.stem] = [path, rows] if suffix == JSON_SUFFIX and rows.exists() else [path]
    return dict(sorted(files_by_key.items()))


def find_incomplete_probe_files(store_root: Path) -> Iterator[Path]:
    """Temporary files, and rows without the JSON file that completes them."""
    for path in sorted((store_root / PROBES_FOLDER).iterdir()) if (store_root / PROBES_FOLDER).is_dir() else ():
        if path.name.startswith(".") or (path.suffix == PARQUET_SUFFIX and not path.with_suffix(JSON_SUFFIX).exists()):
            yield path


def verify_probe_file(path: Path) -> None:
    """Read an entry by its JSON or safetensors file. Raises OSError, ValueError or SafetensorError if it is damaged."""
    if path.suffix == SAFETENSORS_SUFFIX:
        read_activation_file(path)
        return
    content = load_json_with_checksum(path.read_text(encoding="utf-8"))
    rows = path.with_suffix(PARQUET_SUFFIX)
    if "table" in content and compute_file_checksum(rows) != content["table"]:
        raise ValueError(f"{rows.name} does not match its checksum")


def describe_probe_file(path: Path) -> str:
    """One line about the entry with this JSON or safetensors file."""
    if path.suffix == SAFETENSORS_SUFFIX:
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


def write_activation_file(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and JSON data as a safetensors file, completely or not at all."""
    # imported here: listing a store needs no torch
    from safetensors.torch import save_file

    from lmm_forget.models.weight_hashes import hash_tensor

    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    contiguous_tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    hashes = {name: hash_tensor(tensor) for name, tensor in contiguous_tensors.items()}
    header = dump_json_with_checksum({"plan": dict(metadata), "tensors": hashes}, indent=None)
    try:
        save_file(contiguous_tensors, draft, metadata={_HEADER_KEY: header})
        apply_default_permissions(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_activation_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(metadata, tensors) that `write_activation_file` wrote.

    Raises OSError or SafetensorError if the file cannot be read, ValueError if a single bit of it changed.
    """
    # imported here: listing a store needs no torch
    from safetensors import safe_open

    from lmm_forget.models.weight_hashes import hash_tensor

    with safe_open(path, framework="pt") as file:
        content = load_json_with_checksum((file.metadata() or {}).get(_HEADER_KEY, "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if tensors.keys() != content["tensors"].keys():
        raise ValueError("it holds other tensors than its header says")
    for name, tensor in tensors.items():
        if hash_tensor(tensor) != content["tensors"][name]:
            raise ValueError(f"{name} does not match its checksum")
    return content["plan"], tensors


def _list_probe_paths(store_root: Path) -> list[Path]:
    try:
        return [path for path in (store_root / PROBES_FOLDER).iterdir() if not path.name.startswith(".")]
    except OSError:
        return []
