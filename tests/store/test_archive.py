"""The archive: complete or absent, first writer wins, damage is named, moved aside and never used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lmm_forget.errors import StoreError
from lmm_forget.files import dump_json_with_checksum, load_json_with_checksum
from lmm_forget.models.weight_hashes import hash_tensor
from lmm_forget.store import CorruptEntryError, Store

DELTA = {"a.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "b.bias": torch.ones(3)}
HASHES = {name: hash_tensor(tensor) for name, tensor in DELTA.items()}


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, notes: list[str]) -> Store:
    """A store with one stage, `k`."""
    store = Store(tmp_path / "store", notes.append)
    store.commit_stage("k", {"steps": 3, "loss": [1.0, 0.5], "tensors": HASHES}, DELTA)
    return store


def test_a_stage_comes_back_as_it_was_filed(store: Store) -> None:
    assert store.find_record("other") is None
    record = store.find_record("k")
    assert record is not None
    assert (record["steps"], record["loss"], record["key"]) == (3, [1.0, 0.5], "k")
    back = store.load_delta("k")
    assert back.keys() == DELTA.keys()
    assert all(torch.equal(back[n], DELTA[n]) and back[n].dtype == DELTA[n].dtype for n in DELTA)
    assert [name for name, _ in store.iterate_delta_tensors("k", ["b.bias"])] == ["b.bias"]


def test_the_first_writer_wins_and_leaves_no_draft(store: Store) -> None:
    store.commit_stage("k", {"steps": 99, "tensors": HASHES}, DELTA)
    record = store.find_record("k")
    assert record is not None
    assert record["steps"] == 3
    assert [p.name for p in (store.root / "stages").iterdir()] == ["k"]


def test_an_unfinished_draft_is_no_record(store: Store) -> None:
    draft = store.root / "stages" / ".d.1"
    draft.mkdir(parents=True)
    (draft / "record.json").write_text("{}")
    assert store.find_record("d") is None


def _flip(text: str) -> str:
    return text.replace('"steps": 3', '"steps": 4')


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (_flip, "its checksum does not match its content"),
        (lambda text: "{}", "it has no checksum"),
        (
            lambda text: dump_json_with_checksum({**load_json_with_checksum(text), "schema": 99}),
            "its schema is 99, this version reads 3",
        ),
        (
            lambda text: dump_json_with_checksum({**load_json_with_checksum(text), "key": "other"}),
            "it belongs to other",
        ),
        (lambda text: "", "damaged"),
    ],
)
def test_a_record_that_is_not_what_was_written_is_moved_aside(
    store: Store, notes: list[str], harm: Any, said: str
) -> None:
    path = store.get_stage_folder("k") / "record.json"
    path.write_text(harm(path.read_text()))
    assert store.find_record("k") is None
    assert not store.get_stage_folder("k").exists()
    (line,) = notes
    assert str(path) in line and said in line
    (aside,) = (store.root / "damaged").iterdir()
    assert line.endswith(f"moved to {aside}") and (aside / "delta.safetensors").exists()
    store.commit_stage("k", {"steps": 5, "tensors": HASHES}, DELTA)
    assert (store.find_record("k") or {})["steps"] == 5


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def _flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _foreign(path: Path) -> None:
    kinds = json.dumps({"c": "replace"})
    save_file({"c": torch.ones(1)}, path, metadata={"kinds": kinds})


def _unknown_kind(path: Path) -> None:
    kinds = json.dumps({"a.weight": "lowrank", "b.bias": "replace"})
    save_file(DELTA, path, metadata={"kinds": kinds})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_truncate, "is damaged"),
        (_flip_last_byte, "does not match its checksum"),
        (_foreign, "it holds other tensors than its record, a.weight for one"),
        (_unknown_kind, "a.weight is of kind lowrank, its record says replace"),
        (Path.unlink, "is damaged"),
    ],
)
def test_a_delta_that_is_not_what_was_written_is_moved_aside(
    store: Store, notes: list[str], harm: Any, said: str
) -> None:
    path = store.get_stage_folder("k") / "delta.safetensors"
    harm(path)
    with pytest.raises(CorruptEntryError, match="delta.safetensors is damaged") as caught:
        store.load_delta("k")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert [str(caught.value)] == notes
    assert store.find_record("k") is None


def test_a_stage_that_somebody_removed_meanwhile_is_not_an_accident(store: Store) -> None:
    with pytest.raises(CorruptEntryError, match="not in the store"):
        store.load_delta("gone")


def test_an_unwritable_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*choose a writable folder") as caught:
        Store(tmp_path / "file" / "store").commit_stage("k", {"tensors": HASHES}, DELTA)
    assert "\n" not in str(caught.value)


FULL = """
import resource, sys, torch
from lmm_forget.errors import StoreError
from lmm_forget.models.weight_hashes import hash_tensor
from lmm_forget.store import CachedResponse, ResponseCache, StageCheckpoints, Store
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(sys.argv[1])
big = {"w": torch.ones(300_000)}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # what a full disk does: a write that fails half-way
for write in (
    lambda: store.commit_stage("big", {"tensors": {"w": hash_tensor(big["w"])}}, big),
    lambda: StageCheckpoints(store, "big").save(5, big, {}),
    lambda: ResponseCache(store, "m").append_batch({str(i): CachedResponse("x" * 100, 1, 1.0) for i in range(2000)}),
):
    try:
        write()
    except StoreError as error:
        print(error)
"""


def test_a_write_that_fails_half_way_leaves_the_store_as_it_was(store: Store) -> None:
    before = {p for p in store.root.rglob("*") if p.is_file()}
    script = [sys.executable, "-c", FULL, str(store.root)]
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=os.environ)
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith("cannot write ") for line in lines), done
    assert {p for p in store.root.rglob("*") if p.is_file() and p.stat().st_size} == before
    assert store.find_record("k") is not None and store.find_record("big") is None


def test_a_hint_for_planning_comes_back_and_can_be_lost(store: Store) -> None:
    assert store.find_cached_stage_key("p") is None
    store.cache_stage_key("p", "k")
    assert store.find_cached_stage_key("p") == "k"
    (store.root / "paths" / "p.json").write_text("nonsense")
    assert store.find_cached_stage_key("p") is None
    store.cache_stage_key("p", "k")
    assert store.find_cached_stage_key("p") == "k"
