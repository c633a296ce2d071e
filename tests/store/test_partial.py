"""States of a half-trained stage: the newest whole one counts, damaged ones are moved aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmm_forget.store import StageCheckpoints, Store


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"master.w": torch.full((3,), value)}


def test_the_newest_state_is_kept_and_comes_back(tmp_path: Path) -> None:
    partial = StageCheckpoints(Store(tmp_path), "k")
    assert partial.load_latest() is None
    partial.save(5, tensors(1), {"losses": [0.1]})
    partial.save(10, tensors(2), {"losses": [0.1, 0.2]})
    found = partial.load_latest()
    assert found is not None
    assert torch.equal(found[0]["master.w"], tensors(2)["master.w"])
    assert (found[1]["step"], found[1]["losses"]) == (10, [0.1, 0.2])
    assert [p.name for p in partial.folder.iterdir()] == ["step-00000010"]
    partial.delete()
    assert partial.load_latest() is None and not partial.folder.exists()


def test_a_state_without_its_marker_does_not_count(tmp_path: Path) -> None:
    partial = StageCheckpoints(Store(tmp_path), "k")
    partial.save(5, tensors(1), {})
    unfinished = partial.folder / "step-00000010"
    unfinished.mkdir()
    (unfinished / "tensors.safetensors").write_bytes(b"half")
    found = partial.load_latest()
    assert found is not None and found[1]["step"] == 5
    assert not unfinished.exists()


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("harm", [lambda b: b[:-3], lambda b: b[:-2] + bytes([b[-2] ^ 1]) + b[-1:], lambda b: b""])
def test_a_damaged_state_is_moved_aside_and_training_starts_again(tmp_path: Path, file: str, harm: Any) -> None:
    notes: list[str] = []
    partial = StageCheckpoints(Store(tmp_path, notes.append), "k")
    partial.save(5, tensors(1), {})
    path = partial.folder / "step-00000005" / file
    path.write_bytes(harm(path.read_bytes()))
    assert partial.load_latest() is None
    assert len(notes) == 1 and "step-00000005 is damaged" in notes[0]
    assert len(list((tmp_path / "damaged").iterdir())) == 1


def test_a_state_of_another_stage_is_not_taken(tmp_path: Path) -> None:
    store = Store(tmp_path, lambda line: None)
    StageCheckpoints(store, "k").save(5, tensors(1), {})
    (tmp_path / "partial" / "k").rename(tmp_path / "partial" / "other")
    assert StageCheckpoints(store, "other").load_latest() is None
