"""The archive: complete or absent, first writer wins, damage is named."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lmm_forget.errors import StoreError
from lmm_forget.store import Store

DELTA = {"a.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "b.bias": torch.ones(3)}


def test_a_stage_comes_back_as_it_was_filed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.record("k") is None
    store.commit("k", {"steps": 3, "loss": [1.0, 0.5]}, DELTA)
    record = store.record("k")
    assert record is not None
    assert (record["steps"], record["loss"], record["key"]) == (3, [1.0, 0.5], "k")
    back = store.delta("k")
    assert back.keys() == DELTA.keys()
    assert all(torch.equal(back[n], DELTA[n]) and back[n].dtype == DELTA[n].dtype for n in DELTA)


def test_the_first_writer_wins_and_leaves_no_draft(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit("k", {"by": "first"}, DELTA)
    store.commit("k", {"by": "second"}, DELTA)
    record = store.record("k")
    assert record is not None
    assert record["by"] == "first"
    assert [p.name for p in (tmp_path / "stages").iterdir()] == ["k"]


def test_an_unfinished_draft_is_no_record(tmp_path: Path) -> None:
    draft = tmp_path / "stages" / ".k.1"
    draft.mkdir(parents=True)
    (draft / "record.json").write_text("{}")
    assert Store(tmp_path).record("k") is None


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"schema": 99, "key": "k"}', '{"schema": 1, "key": "other"}']
)
def test_a_damaged_or_foreign_record_is_named(tmp_path: Path, content: str) -> None:
    store = Store(tmp_path)
    store.commit("k", {}, DELTA)
    (tmp_path / "stages" / "k" / "record.json").write_text(content)
    with pytest.raises(StoreError, match=r"record\.json.*delete its folder"):
        store.record("k")


def test_a_truncated_delta_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit("k", {}, DELTA)
    path = tmp_path / "stages" / "k" / "delta.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StoreError, match=r"delta\.safetensors cannot be read"):
        store.delta("k")


def test_an_unknown_kind_of_entry_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit("k", {}, DELTA)
    save_file(
        DELTA,
        tmp_path / "stages" / "k" / "delta.safetensors",
        metadata={"kinds": json.dumps({"a.weight": "lowrank"})},
    )
    with pytest.raises(StoreError, match="lowrank"):
        store.delta("k")


def test_an_unwritable_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write .*choose a writable folder"):
        Store(tmp_path / "file" / "store").commit("k", {}, DELTA)


def _holder(root: str, taken: "multiprocessing.synchronize.Event") -> None:
    with Store(root).claim("stage-k"):
        taken.set()
        import time

        time.sleep(60)


def test_a_claim_keeps_others_out_until_its_holder_dies(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    taken = context.Event()
    holder = context.Process(target=_holder, args=(str(tmp_path), taken))
    holder.start()
    try:
        assert taken.wait(60)
        with Store(tmp_path).claim("stage-k", wait=False) as held:
            assert not held
        with Store(tmp_path).claim("stage-other", wait=False) as held:
            assert held
    finally:
        holder.kill()
        holder.join()
    with Store(tmp_path).claim("stage-k", wait=False) as held:
        assert held
