"""Checkpoints of a stage in training, from which an interrupted stage resumes.

    <store>/partial/<stage key>/step-00000200/tensors.safetensors   fp32 masters, optimizer moments
    <store>/partial/<stage key>/step-00000200/state.json            everything else, and the checksum of the tensors

state.json is written last and makes a checkpoint valid; only then the checkpoint before it is deleted.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.files import (
    apply_default_permissions,
    compute_file_checksum,
    dump_json_with_checksum,
    fsync_path,
    load_json_with_checksum,
    write_atomic,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lmm_forget.store.archive import Store

CHECKPOINTS_FOLDER = "partial"
TENSORS_FILE, STATE_FILE = "tensors.safetensors", "state.json"
CHECKPOINT_SCHEMA = 2


class StageCheckpoints:
    """The checkpoints of one stage in training; only the newest is kept."""

    def __init__(self, store: Store, stage_key: str) -> None:
        self.store, self.key = store, stage_key
        self.folder = store.root / CHECKPOINTS_FOLDER / stage_key

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Save a checkpoint after optimizer step `step`. Raises StoreError if the store cannot be written."""
        from safetensors.torch import save_file

        step_folder = self.folder / f"step-{step:08d}"
        with self.store.wrap_write_errors(step_folder):
            try:
                shutil.rmtree(step_folder, ignore_errors=True)
                step_folder.mkdir(parents=True)
                save_file(dict(tensors), step_folder / TENSORS_FILE)
                apply_default_permissions(step_folder / TENSORS_FILE)
                fsync_path(step_folder / TENSORS_FILE)
                content = {**state, "schema": CHECKPOINT_SCHEMA, "key": self.key, "step": step}
                write_atomic(
                    step_folder / STATE_FILE,
                    dump_json_with_checksum({**content, "tensors": compute_file_checksum(step_folder / TENSORS_FILE)}),
                )
                fsync_path(self.folder)
            except BaseException:
                shutil.rmtree(step_folder, ignore_errors=True)
                raise
        for older in self._list_step_folders()[1:]:
            shutil.rmtree(older, ignore_errors=True)

    def load_latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """(tensors, state) of the newest valid checkpoint; None if there is none. Damaged ones are moved aside."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for step_folder in self._list_step_folders():
            if not (step_folder / STATE_FILE).exists():  # the process died while it was writing
                with suppress(OSError):
                    shutil.rmtree(step_folder)
                continue
            try:
                state = load_json_with_checksum((step_folder / STATE_FILE).read_text(encoding="utf-8"))
                if (state.get("schema"), state.get("key")) != (CHECKPOINT_SCHEMA, self.key):
                    raise ValueError(f"it has schema {state.get('schema')} and belongs to {state.get('key')}")
                if compute_file_checksum(step_folder / TENSORS_FILE) != state["tensors"]:
                    raise ValueError(f"{TENSORS_FILE} does not match its checksum")
                return load_file(step_folder / TENSORS_FILE), state
            except (OSError, ValueError, SafetensorError) as error:
                self.store.quarantine(step_folder, f"{step_folder} is damaged: {error}")
        return None

    def delete(self) -> None:
        """Delete all checkpoints, once the stage is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _list_step_folders(self) -> list[Path]:
        """Checkpoint folders, newest first."""
        with suppress(OSError):
            step_folders = [path for path in self.folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name)]
            return sorted(step_folders, reverse=True)
        return []
