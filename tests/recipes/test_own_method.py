"""A user's own method, one file on PYTHONPATH: with a state, data of earlier stages, and low-rank deltas."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest

from lmm_forget.cli.store import main as run_store_command
from lmm_forget.config import compose_config, resolve_config
from lmm_forget.experiment import pipeline
from lmm_forget.export.exported_stage import ExportedStage
from lmm_forget.export.model_writer import load_stage_model
from lmm_forget.models.weight_hashes import hash_parameters, hash_weights
from lmm_forget.progress import NullProgress
from lmm_forget.store import Store

SOURCE = """
import torch
from lmm_forget.models.low_rank import LowRankUpdate
from lmm_forget.recipes.method import StageOutput, restore_base_dtypes
from lmm_forget.recipes.method_state import MethodState
from lmm_forget.recipes.plain import Plain

SEEN = []

class Drift(Plain):
    needs_earlier_data = True

    def start_stage(self, context, lmm, train_set, state):
        parameters = dict(lmm.model.named_parameters())
        self.before = {n: parameters[n].detach().clone() for n in context.plan.trainable}
        self.count = 0 if state is None else state.values["count"]
        self.total = None if state is None else state.tensors["total"]
        earlier = {task: [item.id for item in items] for task, items in context.earlier_train_sets.items()}
        SEEN.append((context.index, context.task, len(train_set), self.count, earlier))
        super().start_stage(context, lmm, train_set, state)

    def end_stage(self, context, lmm):
        masters = {n: p.detach().clone() for n, p in lmm.model.named_parameters() if n in self.before}
        restore_base_dtypes(lmm.model, context.base_dtypes)
        parameters, delta, moved = dict(lmm.model.named_parameters()), {}, 0.0
        for name, before in self.before.items():
            difference = masters[name] - before.float()
            if before.ndim == 2:
                u, s, v = torch.linalg.svd(difference, full_matrices=False)
                delta[name] = LowRankUpdate((s[:2, None] * v[:2]).contiguous(), u[:, :2].contiguous(), 1.0)
                parameters[name].data = delta[name].apply_to(before)
            else:
                delta[name] = parameters[name].detach().clone()
            moved += float(difference.norm())
        total = torch.tensor([moved]) if self.total is None else torch.cat([self.total, torch.tensor([moved])])
        state = MethodState({"total": total}, {"count": self.count + 1})
        return StageOutput(delta if context.keeps_delta else {}, state)
"""


def test_it_is_handed_its_state_whether_stages_are_trained_or_taken_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "drift_method.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(code))
    import drift_method  # type: ignore[import-not-found]  # on the path since the line above

    config = resolve_config(
        compose_config(
            [
                *("experiment=smoke", "suite.tasks=[ai2d]", "data.train_samples=8", "data.eval_samples=2"),
                *("training.max_steps=2", "training.learning_rate=1e-3", "recipe=sa_proj", "sequence=order"),
                *("sequence.tasks=[cub200,pixmocount,pathvqa]", "sequence.order=0", f"store={tmp_path / 'store'}"),
                "recipe.method._target_=drift_method.Drift",
            ]
        )
    )

    def run(folder: str, store: Path) -> dict[str, Any]:
        (tmp_path / folder).mkdir()
        results = pipeline.run_experiment(
            {**copy.deepcopy(config), "store": str(store)}, tmp_path / folder, NullProgress()
        )
        assert results is not None
        return results

    results = run("a", tmp_path / "store")
    assert [(index, task, n, count) for index, task, n, count, _ in drift_method.SEEN] == [
        (1, "tiny_cub200", 8, 0),
        (2, "tiny_pixmocount", 8, 1),
        (3, "tiny_pathvqa", 8, 2),
    ]
    assert [list(earlier) for *_, earlier in drift_method.SEEN] == [
        [],
        ["tiny_cub200"],
        ["tiny_cub200", "tiny_pixmocount"],
    ]
    assert all(len(ids) == 8 for ids in drift_method.SEEN[2][4].values())
    store = Store(tmp_path / "store")
    keys = [stage["key"] for stage in results["stages"]]
    last = store.read_record(keys[2])
    assert set(last["lowrank"]) == {name for name in last["tensors"] if name.endswith(".weight")} != set()
    assert set(last["ingredients"]["earlier_data"]) == {"tiny_cub200", "tiny_pixmocount"}
    size = (store.get_stage_folder(keys[2]) / "delta.safetensors").stat().st_size
    assert size < 0.5 * results["plan"]["delta_bytes"]

    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "stages" / keys[2])
    again = run("b", tmp_path / "copy")
    assert [stage["trained"] for stage in again["timings"]["stages"]] == [False, False, True]
    assert drift_method.SEEN[3] == drift_method.SEEN[2]
    assert [s["weights_hash"] for s in again["stages"]] == [s["weights_hash"] for s in results["stages"]]
    assert Store(tmp_path / "copy").read_record(keys[2])["method_state"] == last["method_state"]

    exported = ExportedStage(tmp_path / "a", results, config, 3, store)
    model = load_stage_model(exported, None, lambda line: None).model
    assert hash_weights(hash_parameters(model)) == results["stages"][2]["weights_hash"]
    assert run_store_command(["verify", f"store={store.root}"]) == 0
    path = store.get_stage_folder(keys[1]) / "method_state.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert run_store_command(["verify", f"store={store.root}"]) == 1
    assert f"stage {keys[1]}: total does not match its checksum" in capsys.readouterr().out
    shutil.rmtree(store.get_stage_folder(keys[2]))
    repaired = run("c", store.root)  # the damaged stage is trained again, and so is the one that needs its state
    assert [s["weights_hash"] for s in repaired["stages"]] == [s["weights_hash"] for s in results["stages"]]
    assert "method_state.safetensors is damaged" in repaired["job"]["repairs"][0]
