"""Safetensors files that check themselves: JSON data in the header, under a checksum, and the hash of every tensor.

    <store>/stages/<key>/method_state.safetensors   what the stage's method hands on to the next stage
    <store>/stages/<key>/snapshot.safetensors       every tensor of the stage's model, where that was asked for later
    <store>/probes/<key>.safetensors                states of the base, see probe_cache.py

This module needs torch; readers of records do without it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmm_forget.files import apply_default_permissions, dump_json_with_checksum, fsync_path, load_json_with_checksum
from lmm_forget.models.weight_hashes import hash_tensor

_HEADER_KEY = "sealed"


def write_checked_tensors(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], *, durable: bool = False
) -> None:
    """Write tensors and JSON data as a safetensors file that appears whole or not at all.

    With `durable` it has reached the disk before it appears.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    contiguous_tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    hashes = {name: hash_tensor(tensor) for name, tensor in contiguous_tensors.items()}
    header = dump_json_with_checksum({"plan": dict(metadata), "tensors": hashes}, indent=None)
    try:
        save_file(contiguous_tensors, draft, metadata={_HEADER_KEY: header})
        apply_default_permissions(draft)
        if durable:
            fsync_path(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_checked_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_checked_tensors` wrote: (JSON data, tensors).

    Raises OSError, SafetensorError, or ValueError if a single bit of it changed.
    """
    with safe_open(path, framework="pt") as file:
        content = load_json_with_checksum((file.metadata() or {}).get(_HEADER_KEY, "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if tensors.keys() != content["tensors"].keys():
        raise ValueError("it holds other tensors than its header says")
    for name, tensor in tensors.items():
        if hash_tensor(tensor) != content["tensors"][name]:
            raise ValueError(f"{name} does not match its checksum")
    return content["plan"], tensors
