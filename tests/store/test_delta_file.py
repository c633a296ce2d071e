"""Low-rank entries of a delta: filed, read back, refused; a chain of stages over the same tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmm_forget.distributed.process_group import SINGLE_PROCESS
from lmm_forget.errors import StoreError
from lmm_forget.experiment.model_state import ModelState
from lmm_forget.models.low_rank import LowRankUpdate
from lmm_forget.models.weight_hashes import hash_parameters, hash_tensor
from lmm_forget.recipes.method_state import MethodState
from lmm_forget.store import CorruptEntryError, Store
from tests.models.tiny import tiny_lmm


def make_update(seed: int, rows: int, columns: int, scale: float = 0.5) -> LowRankUpdate:
    generator = torch.Generator().manual_seed(seed)
    return LowRankUpdate(torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator), scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_low_rank_entry_is_added_in_fp32_and_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    store, base, update = Store(tmp_path), torch.randn(6, 4).to(dtype), make_update(0, 6, 4)
    changed = (base.float() + 0.5 * (update.b @ update.a)).to(dtype)
    assert torch.equal(update.apply_to(base), changed)
    record = {"tensors": {"w": hash_tensor(changed), "v": hash_tensor(base)}}
    store.commit_stage("k", record, {"w": update, "v": base.clone()})
    assert set(store.read_record("k")["lowrank"]) == {"w"}
    found = dict(store.iterate_delta_tensors("k", base_tensors={"w": base}))
    assert torch.equal(found["w"], changed) and found["w"].dtype == dtype and torch.equal(found["v"], base)
    with pytest.raises(StoreError, match="w is a low-rank change of the tensor before the stage"):
        store.load_delta("k")
    assert dict(store.iterate_delta_tensors("k", ["v"])).keys() == {"v"}
    with pytest.raises(CorruptEntryError, match="w does not match its checksum"):
        dict(store.iterate_delta_tensors("k", ["w"], {"w": base + 1}))


def test_stages_on_top_of_each_other_are_loaded_in_their_order(tmp_path: Path) -> None:
    """replace, low rank, low rank: all three count; what a later stage replaces is not read from earlier ones."""
    lmm, store = tiny_lmm("llava_onevision"), Store(tmp_path)
    parameters = dict(lmm.model.named_parameters())
    name = next(n for n, p in parameters.items() if p.ndim == 2)
    state = ModelState(lmm, store, SINGLE_PROCESS, hash_parameters(lmm.model))
    reference = torch.zeros_like(parameters[name])
    for i, entry in enumerate((reference, make_update(1, *reference.shape), make_update(2, *reference.shape))):
        reference = entry.apply_to(reference) if isinstance(entry, LowRankUpdate) else entry
        store.commit_stage(f"s{i}", {"tensors": {name: hash_tensor(reference)}}, {name: entry})
        state.use_cached_stage(store.read_record(f"s{i}"))
    state.load_pending_deltas()
    assert torch.equal(parameters[name], reference)
    assert state.tensor_hashes == hash_parameters(lmm.model) and state.method_state_digest is None


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be multiplied"):
        LowRankUpdate(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="an update of shape"):
        make_update(0, 3, 3).apply_to(torch.ones(2, 2))


def test_a_method_state_is_the_same_from_memory_and_from_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    state = MethodState({"f": torch.arange(4.0).reshape(2, 2).T}, {"stages": (1, 2), "note": "é"})
    tensor = torch.ones(2)
    record = {"tensors": {"w": hash_tensor(tensor)}}
    store.commit_stage("k", record, {"w": tensor}, (state.tensors, state.values))
    assert store.read_record("k")["method_state"] == state.digest
    found = MethodState(*(store.load_method_state("k") or ({}, {})))
    assert found.digest == state.digest and found.values == state.values == {"stages": [1, 2], "note": "é"}
    assert torch.equal(found.tensors["f"], state.tensors["f"])
    store.commit_stage("none", record, {"w": tensor})
    assert store.load_method_state("none") is None
    (store.get_stage_folder("k") / "method_state.safetensors").unlink()
    with pytest.raises(CorruptEntryError, match="method_state.safetensors is damaged"):
        store.load_method_state("k")
    with pytest.raises(ValueError, match="not JSON"):
        MethodState({}, {"x": float("nan")})
