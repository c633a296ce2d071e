"""The files that probes save in the store, each with a checksum; store maintenance lists and verifies them.

<store>/probes/<key>.json          the readings of a probe result, or an alarm; with a checksum of its own
<store>/probes/<key>.parquet       the rows of a probe result, one per prompt; its checksum is in the JSON file
<store>/probes/<key>.safetensors   the base's hidden states along some answers; hashes in its header, with a checksum
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lmm_forget.files import compute_file_checksum, load_json_with_checksum

PROBES_FOLDER = "probes"
JSON_SUFFIX, PARQUET_SUFFIX, SAFETENSORS_SUFFIX = ".json", ".parquet", ".safetensors"


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
        from lmm_forget.store.checked_tensors import read_checked_tensors  # imports torch

        read_checked_tensors(path)
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


def _list_probe_paths(store_root: Path) -> list[Path]:
    try:
        return [path for path in (store_root / PROBES_FOLDER).iterdir() if not path.name.startswith(".")]
    except OSError:
        return []
