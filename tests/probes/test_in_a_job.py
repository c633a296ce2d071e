"""Probes in the main job: what stands in the records, what is shared through the store, what cannot be had."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lmm_forget.cli import why
from lmm_forget.config import compose_config, resolve_config
from lmm_forget.errors import ConfigError
from lmm_forget.experiment import pipeline
from lmm_forget.progress import NullProgress
from lmm_forget.store import Store, maintenance

SMALL = [
    "experiment=smoke",
    "sequence=order",
    "sequence.tasks=[pixmocount,pathvqa]",
    "sequence.order=0",
    "suite.tasks=[ai2d]",
    "data.train_samples=8",
    "data.eval_samples=6",
    "training.max_steps=2",
    "recipe=mlp_gateup",
]
PROBE = ["probe=both", "probe.n=6", "probe.residual_n=3", "probe.token_sets=[number,trained]"]


def configure(store: Path, *overrides: str) -> dict[str, Any]:
    return resolve_config(compose_config([*SMALL, f"store={store}", *overrides]))


def carry_out(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    results = pipeline.run_experiment(copy.deepcopy(config), folder, NullProgress())
    (folder / "results.json").write_text(json.dumps(results, allow_nan=False))
    return results


def timeless(results: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in results.items() if k != "timings"}, sort_keys=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A job without probes, and its store."""
    folder = tmp_path_factory.mktemp("plain")
    return folder / "store", carry_out(configure(folder / "store"), folder / "job")


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The same job with probes and milestones, in a store of its own."""
    folder = tmp_path_factory.mktemp("probed")
    config = configure(folder / "store", *PROBE, "probe.at_steps=[1,2,50]", "probe.evaluate_at_steps=true")
    return folder, carry_out(config, folder / "sweep" / "job")


def test_a_run_with_probes_gives_the_same_weights_and_scores(
    plain: tuple[Path, dict[str, Any]], probed: tuple[Path, dict[str, Any]]
) -> None:
    for before, after in zip(plain[1]["stages"], probed[1]["stages"], strict=True):
        assert {k: v for k, v in after.items() if k != "probes"} == before
    assert plain[1]["figures"] == probed[1]["figures"]
    assert "probes" not in plain[1] and "probes" not in plain[1]["base"]


def test_records_hold_what_was_seen(probed: tuple[Path, dict[str, Any]]) -> None:
    folder, results = probed
    sets = results["probes"]["token_sets"]
    assert set(sets) == {"number", "trained:tiny_pathvqa", "trained:tiny_pixmocount"}
    assert " two" in sets["number"]["tokens"] and "two" in sets["number"]["tokens"]
    for entry in (results["base"], *results["stages"]):
        kinds = [(r["probe"], r["prompts"], r["mode"]) for r in entry["probes"]["readings"]]
        assert kinds == [
            ("output_shift", "tiny_captions", "free"),
            ("output_shift", "tiny_captions", "forced"),
            ("residual_to_logit", "tiny_captions", "forced"),
        ]
    stage = results["stages"][0]
    milestones = stage["probes"]["milestones"]
    assert [m["step"] for m in milestones] == [1, 2] and stage["probes"]["missing_steps"] == []
    last = milestones[-1]
    assert last["readings"] == stage["probes"]["readings"]  # the last step's model is the stage model
    assert {t: s["value"] for t, s in last["scores"].items()} == {t: s["value"] for t, s in stage["scores"].items()}
    norm = stage["probes"]["readings"][2]["norm"]
    assert norm["attention"][0] == 0.0 < min(norm["mlp"])
    rows = pq.read_table(folder / "sweep" / "job" / "probes.parquet").to_pylist()
    assert len(rows) == 6 * 2 * (1 + 2 * (1 + 2))
    forced = [r for r in rows if (r["stage"], r["step"], r["mode"]) == (1, None, "forced")]
    mean = sum(r["mass_mean:number"] for r in forced) / 6
    assert mean == pytest.approx(stage["probes"]["readings"][1]["mass"]["number"]["mean"])
    for name in ("shift_per_stage", "layers_per_stage"):
        for kind in ("svg", "png"):
            assert (folder / "sweep" / "job" / f"{name}.{kind}").stat().st_size > 1000


def test_a_second_job_looks_at_nothing_again(
    probed: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, results = probed
    monkeypatch.setattr("lmm_forget.probes.prober.run_forced_pass", lambda *_, **__: pytest.fail("looked again"))
    config = configure(folder / "store", *PROBE, "probe.at_steps=[1,2,50]", "probe.evaluate_at_steps=true")
    assert timeless(carry_out(config, tmp_path / "job")) == timeless(results)


def test_milestones_of_a_stage_from_the_store_are_missing_until_it_is_trained_again(
    plain: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    more = [*PROBE, "probe=output_shift", "probe.modes=[forced]", "probe.at_steps=[1]"]
    without = carry_out(configure(plain[0], *more), tmp_path / "without")
    for stage in without["stages"]:
        assert stage["probes"]["missing_steps"] == [1] and stage["probes"]["milestones"] == []
        assert stage["probes"]["readings"][0]["kl"] > 0
    again = carry_out(configure(plain[0], *more, "probe.retrain=true"), tmp_path / "again")
    for stage, before in zip(again["stages"], plain[1]["stages"], strict=True):
        assert [m["step"] for m in stage["probes"]["milestones"]] == [1]
        assert stage["weights_hash"] == before["weights_hash"]


def test_milestones_can_be_kept_to_some_skills_and_gc_keeps_what_the_job_rests_on(
    plain: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    more = [*PROBE, "probe=output_shift", "probe.modes=[forced]", "probe.at_steps=[1]", "probe.retrain=true"]
    found = carry_out(configure(plain[0], *more, "probe.at_tasks=[pathvqa]"), tmp_path / "job")
    taught = {stage["task"]: stage["probes"] for stage in found["stages"]}
    assert [m["step"] for m in taught["tiny_pathvqa"]["milestones"]] == [1]
    assert taught["tiny_pixmocount"]["milestones"] == taught["tiny_pixmocount"]["missing_steps"] == []
    rested = json.loads((tmp_path / "job" / "store.json").read_text())["probes"]
    assert len(rested) == 1 + 3 + 1  # the base's states; looks at base and stages; the milestone
    held = {item.key for item in maintenance.list_entries(Store(plain[0])) if item.kind == "probe"}
    assert set(rested) <= held
    store = Store(plain[0])
    spare = maintenance.find_unreferenced_entries(
        store, maintenance.list_entries(store), maintenance.collect_references([tmp_path], store.root)[0]
    )
    assert not set(rested) & {item.key for item in spare}


def test_an_alarm_moves_weights_and_the_record_says_where(plain: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    stop = [*PROBE[:2], "probe.stop_when.kl=1e-9", "probe.alarm_every=1", "probe.alarm_n=3"]
    stopped = carry_out(configure(plain[0], *stop), tmp_path / "stop")
    first = stopped["stages"][0]
    assert first["key"] != plain[1]["stages"][0]["key"]
    assert first["steps"] == 1
    alarm = first["probes"]["alarm"]
    assert (alarm["step"], alarm["figure"], alarm["prompts"], alarm["action"]) == (
        1,
        "kl",
        "tiny_captions",
        "stop",
    )
    warned = configure(plain[0], *stop, "probe.on_alarm=warn")
    assert carry_out(warned, tmp_path / "warn")["stages"][0]["key"] == plain[1]["stages"][0]["key"]


def test_why_reads_a_sweep(probed: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    folder = probed[0] / "sweep"
    assert why.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "number_mass" in out and "late MLP" in out
    found = json.loads((folder / "connection.json").read_text())
    assert len(found["points"]) == 2 * 3 and found["jobs"] == 1
    assert "Which of the three statements hold" in out and "too few" in out or "never rose" in out
    assert [s["number"] for s in found["statements"]] == [1, 2, 3]
    text = (folder / "why.md").read_text()
    assert "pixmocount, step 1" in text and "No intervals" in text
    for name in ("connection", "probe_shift", "probe_layers"):
        assert all((folder / f"{name}.{kind}").stat().st_size > 1000 for kind in ("svg", "png"))
    assert "turned wrong" in (folder / "flips.html").read_text()
    assert why.main([str(folder / "job"), "format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["jobs"] == 1
    assert why.main([str(probed[0] / "nowhere")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_why_names_what_it_left_out_and_what_it_cannot_read(
    probed: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(probed[0] / "sweep", folder)
    (folder / "broken").mkdir()
    (folder / "broken" / "results.json").write_text("{")
    assert why.main([str(folder)]) == 0
    assert "left out: broken (unreadable)" in capsys.readouterr().err
    assert "Left out: broken (unreadable)." in (folder / "why.md").read_text()
    assert json.loads((folder / "connection.json").read_text())["left_out"] == ["broken (unreadable)"]
    (torn,) = folder.glob("*/flips.parquet")
    torn.write_bytes(torn.read_bytes()[:50])
    before = (folder / "why.md").read_text()
    assert why.main([str(folder)]) == 2
    said = capsys.readouterr().err
    assert "flips.parquet: cannot be read" in said and said.count("\n") == 1
    assert (folder / "why.md").read_text() == before


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("probe.prompts=[caption]", "did you mean captions"),
        ("probe.modes=[forcd]", "free and forced"),
        ("probe.token_sets=[numbers]", "number, letter"),
        ("probe.stop_when.number_mass=-1", "above 0"),
        ("probe.at_steps=[0]", "at least 1"),
        ("probe.at_tasks=[textvqa]", "none of them is taught"),
        ("+probe.stop_when.number_mas=0.1", "did you mean number_mass"),
        ("+probe.at_step=[1]", "did you mean at_steps"),
    ],
)
def test_mistakes_are_told_before_anything_starts(override: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        configure(tmp_path, "probe=output_shift", override)


def test_a_bound_may_carry_its_sign(tmp_path: Path) -> None:
    config = configure(tmp_path, "probe=output_shift", "probe.stop_when.number_mass=+0.10")
    assert config["probe"]["stop_when"]["number_mass"] == 0.1
    assert list(config["probe"]["tasks"]) == config["probe"]["prompts"] == ["tiny_captions"]
