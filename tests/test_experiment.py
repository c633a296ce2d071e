"""The main job end to end in one process: base, stages, records, results; and what a second run makes of them."""

import copy
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from lmm_forget.cli.store import main as main_store
from lmm_forget.config import compose_config, resolve_config
from lmm_forget.distributed import stop_signals
from lmm_forget.errors import ConfigError, StoreError
from lmm_forget.experiment import pipeline
from lmm_forget.experiment.references import StoreReferences
from lmm_forget.models.loading import load_model
from lmm_forget.models.weight_hashes import hash_parameters, hash_tensor, hash_weights
from lmm_forget.progress import NullProgress
from lmm_forget.recipes.plain import Plain
from lmm_forget.store import Store
from lmm_forget.store.checked_tensors import read_checked_tensors

SMALL = [
    "experiment=smoke",
    "suite.tasks=[ai2d,mmstar]",
    "data.train_samples=8",
    "data.eval_samples=6",
    "training.max_steps=1",
]
ORDER = ["sequence=order", "sequence.tasks=[cub200,pixmocount,pathvqa]"]


class Listening(NullProgress):
    """Remembers the phases of a run."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []

    def start_phase(self, name: str, total: int, unit: str) -> None:
        self.phases.append((name, total))

    def steps(self) -> int:
        return sum(total for name, total in self.phases if "train" in name)

    def questions(self) -> int:
        return sum(total for name, total in self.phases if "evaluate" in name)


def configure(store: Path, *overrides: str) -> dict[str, Any]:
    return resolve_config(compose_config([*SMALL, *ORDER, f"store={store}", *overrides]))


def timeless(results: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in results.items() if k != "timings"}, sort_keys=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("experiment")
    config = configure(folder / "store", "recipe=mlp_gateup", "sequence.order=0")
    job = folder / "job"
    job.mkdir()
    return folder, config, pipeline.run_experiment(copy.deepcopy(config), job, NullProgress())


def test_results_say_what_the_schema_promises(done: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    folder, config, results = done
    assert set(results) == {
        "schema",
        "job",
        "config",
        "plan",
        "base",
        "stages",
        "figures",
        "data",
        "inputs",
        "timings",
        "versions",
    }
    json.dumps(results, allow_nan=False)
    targets = ["tiny_cub200", "tiny_pixmocount", "tiny_pathvqa"]
    asked = {*targets, "tiny_ai2d", "tiny_mmstar"}
    assert [stage["task"] for stage in results["stages"]] == targets
    assert [stage["index"] for stage in results["stages"]] == [1, 2, 3]
    for entry in (results["base"], *results["stages"]):
        assert set(entry["scores"]) == asked
        assert all(0 <= s["value"] <= 100 and s["n"] == 6 for s in entry["scores"].values())
    figures = results["figures"]
    assert set(figures) == {"target_learning", "target_forgetting", "target_overall", "heldout_forgetting"}
    assert len(figures["heldout_forgetting"]["per_stage"]) == 3
    learned = [
        results["stages"][i]["scores"][t]["value"] - results["base"]["scores"][t]["value"]
        for i, t in enumerate(targets)
    ]
    assert figures["target_learning"]["value"] == pytest.approx(sum(learned) / 3)
    change = results["stages"][0]["scores"]["tiny_ai2d"]["against_base"]
    assert change["mcnemar"]["n"] == 6
    assert change["value"] == pytest.approx(
        results["stages"][0]["scores"]["tiny_ai2d"]["value"] - results["base"]["scores"]["tiny_ai2d"]["value"]
    )
    final = [
        results["stages"][-1]["scores"][t]["value"] - results["base"]["scores"][t]["value"]
        for t in ("tiny_ai2d", "tiny_mmstar")
    ]
    assert figures["heldout_forgetting"]["value"] == pytest.approx(sum(final) / 2)
    assert "store" not in results["config"]
    assert "threads" not in results["config"]["hardware"]


def test_every_answer_lies_beside_the_results(done: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    folder, _, results = done
    table = pq.read_table(folder / "job" / "answers.parquet")
    assert len(table) == 4 * 5 * 6
    assert set(table["stage"].to_pylist()) == {0, 1, 2, 3}
    rows = [r for r in table.to_pylist() if r["stage"] == 2 and r["task"] == "tiny_ai2d"]
    assert 100 * sum(r["value"] for r in rows) / 6 == pytest.approx(
        results["stages"][1]["scores"]["tiny_ai2d"]["value"]
    )
    assert (folder / "job" / "training.csv").exists()


def test_only_planned_tensors_moved_and_they_lie_in_the_delta(
    done: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    folder, config, results = done
    lmm = load_model(config["model"])
    base = hash_parameters(lmm.model)
    assert hash_weights(base) == results["base"]["weights_hash"]
    store = Store(config["store"])
    current = dict(base)
    for stage in results["stages"]:
        delta = store.load_delta(stage["key"])
        record = store.find_record(stage["key"])
        assert record is not None
        assert all(".mlp.gate_proj." in name or ".mlp.up_proj." in name for name in delta)
        assert not any("vision" in name for name in delta)
        assert all(record["tensors"][name] != current[name] for name in delta)
        assert sum(t.numel() for t in delta.values()) == results["plan"]["trainable"]
        current.update(record["tensors"])
        assert hash_weights(current) == stage["weights_hash"]


def test_a_second_run_computes_nothing_and_says_the_same(
    done: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    _, config, results = done
    heard = Listening()
    again = pipeline.run_experiment(copy.deepcopy(config), tmp_path, heard)
    assert heard.steps() == 0
    assert heard.questions() == 0
    assert timeless(again) == timeless(results)


def test_the_same_job_in_a_fresh_store_gives_the_same_bytes(
    done: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    _, config, results = done
    torch.manual_seed(1234)  # what ran before must not matter
    fresh = pipeline.run_experiment(
        {**copy.deepcopy(config), "store": str(tmp_path / "store")}, tmp_path, NullProgress()
    )
    assert timeless(fresh) == timeless(results)


def test_orders_share_their_common_prefix(done: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    _, config, results = done
    heard = Listening()
    other = pipeline.run_experiment(
        configure(Path(config["store"]), "recipe=mlp_gateup", "sequence.order=1"), tmp_path, heard
    )
    assert [s["task"] for s in other["stages"]] == ["tiny_cub200", "tiny_pathvqa", "tiny_pixmocount"]
    assert other["stages"][0]["key"] == results["stages"][0]["key"]
    assert heard.steps() == 2
    assert heard.questions() == 2 * 5 * 6


def test_what_is_damaged_is_named_moved_aside_and_computed_again(
    done: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, config, results = done
    store = tmp_path / "store"
    shutil.copytree(config["store"], store)
    shutil.rmtree(store / "answers")  # so that the weights are needed again
    path = store / "stages" / results["stages"][1]["key"] / "delta.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    heard = Listening()
    again = pipeline.run_experiment({**copy.deepcopy(config), "store": str(store)}, tmp_path, heard)
    assert heard.steps() == 1
    (line,) = again["job"].pop("repairs")
    assert f"{path} is damaged: model." in line and "moved to" in line and line in capsys.readouterr().err
    assert len(list((store / "damaged").iterdir())) == 1
    assert timeless(again) == timeless({**results, "job": again["job"]})


def test_the_model_is_put_together_only_when_something_is_asked_of_it(
    done: tuple[Path, dict[str, Any], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, config, results = done
    read: list[str] = []
    tensors = Store.iterate_delta_tensors

    def counted(self: Store, *arguments: Any) -> Any:
        for name, tensor in tensors(self, *arguments):
            read.append(name)
            yield name, tensor

    monkeypatch.setattr(Store, "iterate_delta_tensors", counted)
    pipeline.run_experiment(copy.deepcopy(config), tmp_path, NullProgress())
    assert read == []
    store = tmp_path / "store"
    shutil.copytree(config["store"], store)
    shutil.rmtree(store / "stages" / results["stages"][2]["key"])
    pipeline.run_experiment({**copy.deepcopy(config), "store": str(store)}, tmp_path, NullProgress())
    assert len(read) == len(set(read)) == 12  # two stages moved each of them; the last writer's bytes are enough


def test_a_full_snapshot_holds_every_tensor_and_leads_to_the_same_model(
    done: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    _, config, results = done
    full = configure(tmp_path / "store", "recipe=mlp_gateup", "sequence.order=0", "snapshot=full")
    again = pipeline.run_experiment(full, tmp_path, NullProgress())
    assert [s["key"] for s in again["stages"]] == [s["key"] for s in results["stages"]]
    assert again["figures"] == results["figures"]
    model = load_model(config["model"]).model
    snapshot = Store(full["store"]).load_delta(again["stages"][-1]["key"])
    assert snapshot.keys() == dict(model.named_parameters()).keys()
    assert hash_weights({n: hash_tensor(t) for n, t in snapshot.items()}) == results["stages"][-1]["weights_hash"]


def test_a_full_snapshot_of_a_stage_that_is_there_as_a_delta(
    done: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    _, config, results = done
    shutil.copytree(config["store"], tmp_path / "store")
    full = {**copy.deepcopy(config), "store": str(tmp_path / "store"), "snapshot": "full"}
    heard = Listening()
    again = pipeline.run_experiment(full, tmp_path, heard)
    assert heard.steps() == 0 and timeless(again) == timeless(results)
    names = dict(load_model(config["model"]).model.named_parameters()).keys()
    for stage in results["stages"]:
        path = Store(full["store"]).get_stage_folder(stage["key"]) / "snapshot.safetensors"
        about, tensors = read_checked_tensors(path)
        assert tensors.keys() == names
        assert about["weights_hash"] == stage["weights_hash"]
        assert hash_weights({n: hash_tensor(t) for n, t in tensors.items()}) == stage["weights_hash"]
    assert main_store(["verify", f"store={full['store']}"]) == 0
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main_store(["verify", f"store={full['store']}"]) == 1


def test_a_delta_is_hardly_larger_than_what_moved(done: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    _, config, results = done
    store = Store(config["store"])
    for stage in results["stages"]:
        moved = sum(t.numel() * t.element_size() for t in store.load_delta(stage["key"]).values())
        size = (store.get_stage_folder(stage["key"]) / "delta.safetensors").stat().st_size
        assert moved < size <= 1.01 * moved


def test_a_store_that_cannot_be_written_is_enough_when_everything_is_there(
    done: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config, results = done

    def refuse(self: Store, path: Path) -> Any:
        raise StoreError("read-only")

    monkeypatch.setattr(Store, "wrap_write_errors", refuse)
    again = pipeline.run_experiment(copy.deepcopy(config), tmp_path, NullProgress())
    assert timeless(again) == timeless(results)


def test_a_stage_behind_its_last_step_is_filed_before_the_job_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to stop that comes while tensors are rounded, hashed and written costs nothing that was trained."""
    config = configure(tmp_path / "store", "recipe=sa_proj", "sequence=single", "sequence.task=cub200")
    finish, handlers = (
        Plain.end_stage,
        {number: signal.getsignal(number) for number in stop_signals.STOP_SIGNALS},
    )

    def interrupted(*given: Any, **more: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(*given, **more)

    monkeypatch.setattr(stop_signals, "_stop_limit", 10**6)  # the timer behind a request must not end the tests
    monkeypatch.setattr(Plain, "end_stage", interrupted)
    stop_signals.install_stop_handlers()
    try:
        with pytest.raises(stop_signals.StopRequested):
            pipeline.run_experiment(copy.deepcopy(config), tmp_path, NullProgress())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        stop_signals._stop_requested.clear()
        stop_signals._handlers_installed = False
    monkeypatch.undo()
    again = Listening()
    pipeline.run_experiment(copy.deepcopy(config), tmp_path, again)
    assert again.steps() == 0 and again.questions() > 0


def test_a_disk_without_room_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    heard = Listening()
    with pytest.raises(StoreError, match=r"needs \d+\.\d MB in the store .*1\.0 MB are free; free .* gc store="):
        pipeline.run_experiment(configure(tmp_path / "store"), tmp_path, heard)
    assert heard.steps() == 0


def test_what_cannot_work_is_said_before_the_first_question(tmp_path: Path) -> None:
    heard = Listening()
    config = configure(
        tmp_path / "store", "recipe=sa_proj", "training.global_batch_size=64", "hardware.micro_batch_size=8"
    )
    with pytest.raises(ConfigError, match=r"global_batch|global batch"):
        pipeline.run_experiment(config, tmp_path, heard)
    config = configure(tmp_path / "store", "hardware.precision=bf16-true", "training.learning_rate=5e-6")
    with pytest.raises(ConfigError, match="bf16"):
        pipeline.run_experiment(config, tmp_path, heard)
    assert heard.questions() == 0


def test_a_job_that_starts_again_keeps_what_it_rested_on_until_it_is_done(tmp_path: Path) -> None:
    """Its finished stages are named by nothing else while it asks the base once more, and gc may run then."""
    store = Store(tmp_path / "store")
    old = {"store": str(store.root), "stages": ["one", "two"], "models": ["base"], "probes": []}
    (tmp_path / "store.json").write_text(json.dumps(old))
    references = StoreReferences(tmp_path, store.root)

    def named() -> dict[str, Any]:
        return dict(json.loads((tmp_path / "store.json").read_text()))

    references.record("models", "base")
    assert named() == {**old, "measured": []}
    references.record("stages", "three")
    assert set(named()["stages"]) == {"one", "two", "three"}
    references.drop_previous()
    assert named() == {**old, "stages": ["three"], "measured": []}
    references = StoreReferences(tmp_path, tmp_path / "another")
    references.record("stages", "four")
    assert named()["stages"] == ["four"]
