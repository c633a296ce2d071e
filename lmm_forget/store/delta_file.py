"""The file of a stage's delta: tensors that moved, whole (kind `replace`) or as two factors (kind `lowrank`).

An entry `name` of kind `replace` is the tensor `name`. One of kind `lowrank` is the tensors `name.A` and `name.B`; its
scale and the hashes of both stand in the stage's record, as does the hash of every tensor that comes out.

This module needs torch; readers of records do without it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmm_forget.models.low_rank import LowRankUpdate
from lmm_forget.models.weight_hashes import hash_tensor

REPLACE, LOW_RANK = "replace", "lowrank"


def write_delta(path: Path, delta: Mapping[str, Tensor | LowRankUpdate]) -> dict[str, dict[str, Any]]:
    """Write a delta and return the record's part about its low-rank entries: {name: {"A", "B", "scale"}}."""
    tensors: dict[str, Tensor] = {}
    low_rank: dict[str, dict[str, Any]] = {}
    for name, entry in delta.items():
        if isinstance(entry, LowRankUpdate):
            factors = {"A": entry.a.detach().cpu().contiguous(), "B": entry.b.detach().cpu().contiguous()}
            tensors |= {f"{name}.{factor}": tensor for factor, tensor in factors.items()}
            low_rank[name] = {f: hash_tensor(tensor) for f, tensor in factors.items()} | {"scale": entry.scale}
        else:
            tensors[name] = entry
    kinds = {name: LOW_RANK if name in low_rank else REPLACE for name in sorted(delta)}
    save_file(tensors, path, metadata={"kinds": json.dumps(kinds)})
    return low_rank


def read_delta(path: Path, record: Mapping[str, Any]) -> Iterator[tuple[str, Tensor | LowRankUpdate]]:
    """The entries of a delta file by name, each compared with the hashes in `record`.

    Raises OSError, SafetensorError, or ValueError for one that is not what was recorded.
    """
    yield from _read_entries(path, record, record["tensors"])


def read_delta_tensors(
    path: Path,
    record: Mapping[str, Any],
    names: Collection[str] | None,
    base_tensors: Mapping[str, Tensor],
) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a stage moved (those in `names`; None: all), compared with the hashes in `record`.

    `base_tensors` are those before the stage: what a low-rank entry is added to, when its turn comes. Raises OSError,
    SafetensorError, or ValueError for what is not as recorded.
    """
    for name, entry in _read_entries(path, record, record["tensors"] if names is None else names):
        if not isinstance(entry, LowRankUpdate):
            yield name, entry
            continue
        tensor = entry.apply_to(base_tensors[name])
        if hash_tensor(tensor) != record["tensors"][name]:
            raise ValueError(f"{name} does not match its checksum (another base, or another machine's arithmetic?)")
        yield name, tensor


def _read_entries(
    path: Path, record: Mapping[str, Any], names: Collection[str]
) -> Iterator[tuple[str, Tensor | LowRankUpdate]]:
    hashes: Mapping[str, str] = record["tensors"]
    low_rank: Mapping[str, Mapping[str, Any]] = record.get("lowrank") or {}
    expected_names = {name for name in hashes if name not in low_rank} | {f"{n}.{f}" for n in low_rank for f in "AB"}
    with safe_open(path, framework="pt") as file:
        stored_names = set(file.keys())
        if stored_names != expected_names:
            raise ValueError(f"it holds other tensors than its record, {min(stored_names ^ expected_names)} for one")
        kinds = json.loads((file.metadata() or {}).get("kinds", "{}"))
        for name in hashes:
            expected_kind = LOW_RANK if name in low_rank else REPLACE
            if kinds.get(name) != expected_kind:
                raise ValueError(f"{name} is of kind {kinds.get(name)}, its record says {expected_kind}")

        def read_checked(name: str, expected_hash: str) -> Tensor:
            tensor: Tensor = file.get_tensor(name)
            if hash_tensor(tensor) != expected_hash:
                raise ValueError(f"{name} does not match its checksum")
            return tensor

        for name in sorted(names):
            if name in low_rank:
                about = low_rank[name]
                a, b = (read_checked(f"{name}.{factor}", about[factor]) for factor in "AB")
                yield name, LowRankUpdate(a, b, float(about["scale"]))
            else:
                yield name, read_checked(name, hashes[name])
