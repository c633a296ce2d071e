"""Resolve where the model of a `model` config node is stored; reads no weights and imports no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError

PACKAGE_PREFIX = "package:"
"""Prefix of a `path` that names a model inside this package."""
MODEL_FILES = frozenset({".json", ".safetensors", ".jinja", ".model"})
"""Suffixes of the files that are read from a model's folder."""
VOCABULARY_FILES = frozenset({"vocab.txt", "merges.txt"})
"""Names of further files that are read."""


def find_packaged_model(name: str) -> Path:
    """The folder of a model inside this package. Raises ConfigError, listing the models, for an unknown one."""
    root = Path(str(files("lmm_forget"))) / "tiny" / "weights"
    folder = root / name
    if not (folder / "config.json").is_file():
        available = sorted(p.parent.name for p in root.glob("*/config.json"))
        hint = f"; make tiny FAMILY={name.removeprefix('tiny_')} makes it" if name.startswith("tiny_") else ""
        raise ConfigError(f"no packaged model {name!r}; packaged: {', '.join(available) or 'none'}{hint}")
    return folder


def resolve_model_source(spec: Mapping[str, Any]) -> tuple[str, str | None]:
    """(folder or hub id, hub revision or None) of a `model` config node. Raises ConfigError if there is no model."""
    path = spec.get("path")
    if path:
        if str(path).startswith(PACKAGE_PREFIX):
            return str(find_packaged_model(str(path).removeprefix(PACKAGE_PREFIX))), None
        folder = Path(os.path.expanduser(str(path)))
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model.path={path} is not a model folder: it has no config.json")
        return str(folder), None
    if not spec.get("hub_id"):
        raise ConfigError(f"model {spec.get('name')!r} has neither `path` nor `hub_id`; set model.path=FOLDER")
    return str(spec["hub_id"]), spec.get("revision")


def fingerprint_folder(folder: Path) -> str:
    """SHA-256 (hex) over names and bytes of the files from which a model is read; links are followed.

    Raises OSError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        is_model_file = path.suffix in MODEL_FILES or path.name in VOCABULARY_FILES
        if not is_model_file or is_hidden or not path.is_file():
            continue
        with path.open("rb") as file:
            digest.update(f"{name.as_posix()}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
