"""Where a stage that was stopped half-way is taken up: its state after some optimizer step, on disk.

    <store>/partial/<stage key>/step-00000200/tensors.safetensors   fp32 masters, optimizer moments
    <store>/partial/<stage key>/step-00000200/state.json            everything else, and the checksum of the tensors

`state.json` is written last and makes the state count; the state before it is deleted only then.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.files import file_checksum, sealed, sync, unseal, usual_mode, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from lmm_forget.store.archive import Store

PARTIAL = "partial"
TENSORS, STATE = "tensors.safetensors", "state.json"
SCHEMA = 1


class Partial:
    """The saved states of one stage in training; at most the last one is kept."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key
        self.folder = store.root / PARTIAL / key

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Keep the state after optimizer step `step`. Raises StoreError where the store cannot be written."""
        from safetensors.torch import save_file

        here = self.folder / f"step-{step:08d}"
        with self.store.writing(here):
            try:
                shutil.rmtree(here, ignore_errors=True)
                here.mkdir(parents=True)
                save_file(dict(tensors), here / TENSORS)
                usual_mode(here / TENSORS)
                sync(here / TENSORS)
                content = {**state, "schema": SCHEMA, "key": self.key, "step": step}
                write_atomic(here / STATE, sealed({**content, "tensors": file_checksum(here / TENSORS)}))
                sync(self.folder)
            except BaseException:
                shutil.rmtree(here, ignore_errors=True)
                raise
        for older in self._states()[1:]:
            shutil.rmtree(older, ignore_errors=True)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest state that is whole: (tensors, state). None if there is none; damaged ones are moved aside."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for here in self._states():
            if not (here / STATE).exists():  # the process died while it was writing
                with suppress(OSError):
                    shutil.rmtree(here)
                continue
            try:
                state = unseal((here / STATE).read_text(encoding="utf-8"))
                if (state.get("schema"), state.get("key")) != (SCHEMA, self.key):
                    raise ValueError(f"it has schema {state.get('schema')} and belongs to {state.get('key')}")
                if file_checksum(here / TENSORS) != state["tensors"]:
                    raise ValueError(f"{TENSORS} does not match its checksum")
                return load_file(here / TENSORS), state
            except (OSError, ValueError, SafetensorError) as error:
                self.store.set_aside(here, f"{here} is damaged: {error}")
        return None

    def drop(self) -> None:
        """Forget all states: the stage is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _states(self) -> list[Path]:
        """State folders, newest first."""
        with suppress(OSError):
            found = [path for path in self.folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name)]
            return sorted(found, reverse=True)
        return []
