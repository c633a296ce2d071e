"""What was measured once and for all on the store's behalf: `<store>/measured/micro-batch-<key>.json`, each checked.

The key is the hash of the conditions that the measurement holds under; they stand in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.files import dump_json_with_checksum, load_json_with_checksum, write_atomic
from lmm_forget.store.keys import hash_json

if TYPE_CHECKING:
    from lmm_forget.store.archive import Store

MEASUREMENTS_FOLDER = "measured"
_PREFIX, _SUFFIX = "micro-batch-", ".json"


def find_micro_batch_size(store: Store, key: str) -> int | None:
    """The micro-batch that was measured under the conditions with this key; None where none was, or it is damaged."""
    try:
        return int(read_measurement(_get_path(store.root, key))["micro_batch_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_micro_batch_size(store: Store, conditions: Mapping[str, Any], micro_batch_size: int) -> None:
    """File a measured micro-batch under the hash of its conditions. Raises StoreError."""
    path = _get_path(store.root, hash_json(conditions))
    with store.wrap_write_errors(path):
        write_atomic(path, dump_json_with_checksum({"micro_batch_size": micro_batch_size, "about": dict(conditions)}))


def list_measurements(store_root: Path) -> dict[str, Path]:
    """The file of every measurement in a store, by key."""
    files = sorted((store_root / MEASUREMENTS_FOLDER).glob(f"{_PREFIX}*{_SUFFIX}"))
    return {path.name[len(_PREFIX) : -len(_SUFFIX)]: path for path in files}


def read_measurement(path: Path) -> dict[str, Any]:
    """A measurement's content. Raises OSError, and ValueError for one that is damaged or lies under another's key."""
    content = load_json_with_checksum(path.read_text(encoding="utf-8"))
    if path != _get_path(path.parent.parent, hash_json(content["about"])):
        raise ValueError("its conditions are not those of its key")
    return content


def _get_path(store_root: Path, key: str) -> Path:
    return store_root / MEASUREMENTS_FOLDER / f"{_PREFIX}{key}{_SUFFIX}"
