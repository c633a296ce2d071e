"""Content hashes of weights, for stage keys, records and the check that frozen tensors did not change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def hash_tensor(tensor: torch.Tensor) -> str:
    """SHA-256 (hex) over dtype, shape and bytes; equal exactly if the tensors are bit-identical."""
    data = tensor.detach().to("cpu").contiguous()
    digest = hashlib.sha256(f"{data.dtype}{tuple(data.shape)}".encode())
    if data.numel():
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_weights(hashes: Mapping[str, str]) -> str:
    """SHA-256 (hex) over `hashes` (name -> tensor hash) sorted by name; a changed tensor needs only one new hash."""
    digest = hashlib.sha256()
    for name in sorted(hashes):
        digest.update(f"{name}\0{hashes[name]}\n".encode())
    return digest.hexdigest()


def hash_parameters(model: nn.Module) -> dict[str, str]:
    """Name -> hash of every parameter, in the order of `named_parameters`; tied parameters appear once."""
    return {name: hash_tensor(p) for name, p in model.named_parameters()}


def hash_state(tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over named tensors and JSON-serialisable values, whatever the order of their names."""
    tensor_hashes = {name: hash_tensor(tensor) for name, tensor in tensors.items()}
    text = json.dumps({"tensors": tensor_hashes, "values": dict(values)}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
