"""Looking after a store through its command: list, show, explain, verify, clean, remove."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lmm_forget.cli.store import main
from lmm_forget.files import compute_file_checksum, dump_json_with_checksum, write_atomic
from lmm_forget.models.weight_hashes import hash_tensor
from lmm_forget.store import CachedResponse, ResponseCache, StageCheckpoints, Store
from lmm_forget.store.checked_tensors import write_checked_tensors
from lmm_forget.store.keys import hash_json
from lmm_forget.store.measurements import find_micro_batch_size, save_micro_batch_size

DELTA = {"w": torch.arange(1000.0)}


def stage(store: Store, key: str, seed: int) -> None:
    record = {
        "task": "tiny_cub200",
        "steps": 3,
        "weights_hash": f"h{seed}",
        "tensors": {name: hash_tensor(tensor) for name, tensor in DELTA.items()},
        "ingredients": {"config": {"recipe": {"name": "llm"}, "seed": seed}, "parent": "0123456789"},
    }
    store.commit_stage(key, record, DELTA)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A sweep's folder with a store: two stages, answers and a half-trained one; a job refers to some of it."""
    store = Store(tmp_path / "multirun" / ".store")
    stage(store, "aaaa1", 0)
    stage(store, "aabb2", 1)
    store.cache_stage_key("path", "aabb2")
    ResponseCache(store, "mmmm").append_batch({"q": CachedResponse("yes", 1, 2.0)})
    StageCheckpoints(store, "cccc").save(7, DELTA, {})
    job = tmp_path / "multirun" / "demo" / "llm"
    job.mkdir(parents=True)
    (job / "store.json").write_text(json.dumps({"store": "x", "stages": ["aaaa1", "cccc"], "models": []}))
    return tmp_path


def call(home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main([*words, f"store={home / 'multirun' / '.store'}"])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_everything_is_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(home, capsys, "ls")
    assert code == 0
    assert "tiny_cub200, llm, seed 0, 3 steps, on 01234567" in out
    assert "1 answers in 1 files" in out and "step-00000007" in out
    assert "2 stages" in out.splitlines()[-1]
    items = json.loads(call(home, capsys, "ls", "format=json")[1])
    assert [(i["kind"], i["key"]) for i in items] == [
        ("stage", "aaaa1"),
        ("stage", "aabb2"),
        ("answers", "mmmm"),
        ("partial", "cccc"),
    ]
    assert all(i["size"] > 0 for i in items)


def test_a_stage_is_shown_and_two_are_told_apart(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(call(home, capsys, "show", "aaaa")[1])
    assert (shown["steps"], shown["tensors"], shown["key"]) == (3, 1, "aaaa1")
    assert call(home, capsys, "explain", "aaaa", "aabb")[1] == "config.seed: 0 | 1\n"
    assert call(home, capsys, "explain", "aaaa", "aaaa")[1] == "the same stage\n"


def test_damage_is_found_by_verify(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(home, capsys, "verify")
    assert code == 0 and "4 checked" in out and "all whole" in out
    root = home / "multirun" / ".store"
    for path in (
        root / "stages" / "aaaa1" / "delta.safetensors",
        root / "partial" / "cccc" / "step-00000007" / "tensors.safetensors",
        next((root / "answers" / "mmmm").iterdir()),
    ):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    code, out, _ = call(home, capsys, "verify", "format=json")
    found = json.loads(out)
    assert code == 1 and [f["key"] for f in found["faults"]] == ["aaaa1", "mmmm", "cccc"]
    assert "does not match its checksum" in found["faults"][0]["reason"]
    assert call(home, capsys, "verify", "aabb")[0] == 0


def test_cleaning_spares_what_a_job_refers_to_and_tries_first(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(home / "multirun" / ".store")
    draft = store.root / "stages" / ".dddd.0123"
    draft.mkdir()
    (store.root / "damaged" / "x").mkdir(parents=True)
    code, out, _ = call(home, capsys, "gc")
    assert code == 0 and "would be removed; apply=true does it" in out
    assert "1 job folders" in out and store.find_record("aabb2") is not None and draft.exists()
    with store.acquire_lease("stage-aabb2"):
        listed = json.loads(call(home, capsys, "gc", "format=json")[1])["items"]
        assert "aabb2" not in [i["key"] for i in listed]  # somebody works on it
    code, out, _ = call(home, capsys, "gc", "apply=true")
    assert code == 0 and out.splitlines()[-1].endswith("removed")
    left = json.loads(call(home, capsys, "ls", "format=json")[1])
    assert [i["key"] for i in left] == ["aaaa1", "cccc"]
    assert not draft.exists() and store.find_cached_stage_key("path") is None


def test_what_probes_filed_is_listed_checked_and_cleaned(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(home / "multirun" / ".store")
    folder = store.root / "probes"
    for key in ("look1", "look2"):
        rows = write_atomic(folder / f"{key}.parquet", f"rows of {key}" * 9)
        found = {"readings": [{"prompts": "captions"}], "scores": None, "table": compute_file_checksum(rows)}
        write_atomic(folder / f"{key}.json", dump_json_with_checksum(found))
    write_atomic(folder / "rang.json", dump_json_with_checksum({"alarm": {"figure": "kl"}}))
    for key in ("base1", "base2"):
        write_checked_tensors(folder / f"{key}.safetensors", {"answers": ["a"]}, DELTA)
    for name in ("half.parquet", ".look3.json.x1"):
        (folder / name).write_text("left by a kill")
    job = home / "multirun" / "demo" / "mlp" / "store.json"
    job.parent.mkdir()
    job.write_text(json.dumps({"store": "x", "stages": [], "models": [], "probes": ["look1", "base1"]}))
    code, out, _ = call(home, capsys, "ls")
    assert code == 0 and "5 probes" in out.splitlines()[-1]
    assert "1 readings on captions" in out and "alarm: kl" in out and "states of the base" in out
    code, out, _ = call(home, capsys, "verify")
    assert code == 0 and "9 checked" in out and "all whole" in out
    untouched = {path: path.read_bytes() for path in folder.iterdir()}
    for name in ("look1.json", "look2.parquet", "base2.safetensors"):
        content = bytearray((folder / name).read_bytes())
        content[-9] ^= 1
        (folder / name).write_bytes(content)
    found = json.loads(call(home, capsys, "verify", "format=json")[1])["faults"]
    assert [(f["kind"], f["key"]) for f in found] == [("probe", k) for k in ("base2", "look1", "look2")]
    assert all("checksum" in f["reason"] for f in found)
    for path, content in untouched.items():
        path.write_bytes(content)
    with store.acquire_lease("probe-look2"):  # somebody is at it: neither its rows nor anybody's drafts are touched
        assert call(home, capsys, "rm", "look2")[0] == 2
        assert call(home, capsys, "gc", "apply=true")[0] == 0
        left = {path.name for path in folder.iterdir()}
        assert left == {
            *(f"look{n}{suffix}" for n in (1, 2) for suffix in (".json", ".parquet")),
            "base1.safetensors",
            "half.parquet",
            ".look3.json.x1",
        }
    assert call(home, capsys, "gc", "apply=true")[0] == 0
    assert {p.name for p in folder.iterdir()} == {"look1.json", "look1.parquet", "base1.safetensors"}


def test_measured_micro_batches_are_listed_checked_and_cleaned(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(home / "multirun" / ".store")
    needed, unneeded, damaged = ({"device": "H200", "schema": i} for i in range(3))
    for conditions in (needed, unneeded, damaged):
        save_micro_batch_size(store, conditions, 8)
    needed_key, unneeded_key, damaged_key = map(hash_json, (needed, unneeded, damaged))
    assert find_micro_batch_size(store, needed_key) == 8 and find_micro_batch_size(store, "x") is None
    code, out, _ = call(home, capsys, "ls")
    assert f"measured {needed_key[:12]}" in out and "micro-batch 8 on H200" in out and "3 measured" in out
    assert call(home, capsys, "verify")[0] == 0
    path = store.root / "measured" / f"micro-batch-{damaged_key}.json"
    path.write_text(path.read_text().replace('"micro_batch_size": 8', '"micro_batch_size": 16'))
    code, out, _ = call(home, capsys, "verify")
    assert code == 1 and f"measured {damaged_key}: its checksum does not match" in out
    assert find_micro_batch_size(store, damaged_key) is None
    moved = path.with_name("micro-batch-" + "0" * 40 + ".json")
    moved.write_text((store.root / "measured" / f"micro-batch-{needed_key}.json").read_text())
    assert "its conditions are not those of its key" in call(home, capsys, "verify", "0" * 40)[1]
    (home / "multirun" / "demo" / "llm" / "store.json").write_text(
        json.dumps({"store": "x", "stages": [], "models": [], "measured": [needed_key, damaged_key]})
    )
    assert call(home, capsys, "gc", "apply=true")[0] == 0
    assert [path.name for path in (store.root / "measured").iterdir()] == [f"micro-batch-{needed_key}.json"]
    assert call(home, capsys, "rm", needed_key[:6])[0] == 0
    assert not list((store.root / "measured").iterdir())


def test_a_store_that_nobody_refers_to_is_not_emptied_by_accident(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "multirun" / "demo" / "llm" / "store.json").unlink()
    code, _, err = call(home, capsys, "gc", "apply=true")
    assert code == 2 and "no job folder below" in err
    assert call(home, capsys, "gc", "apply=true", f"runs={home}")[0] == 0


def test_job_folders_elsewhere_are_named_beside_those_at_home(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, key in (("one", "aabb2"), ("two", "mmmm")):
        (home / name / "job").mkdir(parents=True)
        refers = {"store": "x", "stages": [key], "models": [key]}
        (home / name / "job" / "store.json").write_text(json.dumps(refers))
    code, out, _ = call(home, capsys, "gc", "apply=true", f"runs={home / 'one'}", f"runs={home / 'two'}")
    assert code == 0 and "3 job folders below" in out and "; 0 others" in out
    kept = {item["key"] for item in json.loads(call(home, capsys, "ls", "format=json")[1])}
    assert kept == {"aaaa1", "aabb2", "mmmm", "cccc"}


@pytest.mark.parametrize("content", ['{"store": "x", "sta', "{}", "[]", '{"stages": 3, "models": []}'])
def test_nothing_is_removed_while_a_job_does_not_say_what_it_needs(
    content: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "multirun" / "demo" / "llm" / "store.json"
    path.write_text(content)
    code, _, err = call(home, capsys, "gc", "apply=true")
    assert code == 2 and str(path) in err and err.count("\n") == 1
    assert len(json.loads(call(home, capsys, "ls", "format=json")[1])) == 4


def test_a_damaged_record_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (Store(home / "multirun" / ".store").get_stage_folder("aaaa1") / "record.json").write_text("{")
    for words in (("show", "aaaa"), ("explain", "aaaa", "aabb")):
        code, _, err = call(home, capsys, *words)
        assert code == 2 and "stage aaaa1: its record is damaged" in err and err.count("\n") == 1


def test_removing_takes_keys_and_spares_what_is_in_work(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(home / "multirun" / ".store")
    with store.acquire_lease("stage-cccc"):
        code, _, err = call(home, capsys, "rm", "cccc")
        assert code == 2 and "works on it" in err
    assert call(home, capsys, "rm", "cccc", "aabb")[0] == 0
    assert store.find_record("aabb2") is None and store.find_record("aaaa1") is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["polish"], "there is no action 'polish'; choose one of: ls, show, explain"),
        (["show"], "show needs 1 key"),
        (["explain", "aaaa"], "explain needs 2 keys"),
        (["show", "zz"], "nothing in "),
        (["show", "aa"], "2 things in "),
        (["ls", "format=xml"], "format=xml is not known; choose one of: table, json"),
        (["ls", "colour=red"], "there is no option colour"),
        (["gc", "apply=yes"], "apply=yes is not known; choose one of: true, false"),
        (["gc", "runs=nowhere"], "runs=nowhere is not a folder"),
        (["gc", "aaaa"], "gc takes no key; found aaaa"),
        (["ls", "apply=true"], "apply= belongs to gc, not to ls"),
        (["explain", "aaaa", "mmmm"], "mmmm is of kind answers; expected stage"),
        (["explain", "aaaa", "aabb", "cccc"], "explain takes 2 keys; found 3"),
        *(([command, key], "which every key begins with") for command in ("show", "verify", "rm") for key in ("", " ")),
        (["explain", "aaaa", ""], "which every key begins with"),
        (["rm", "aa"], "2 things in "),
        (["rm", "aaaa1", "aa"], "2 things in "),
        (
            ["rm", "aab"],
            "'aab' is short for the key of something to remove; give at least 4 characters of aabb2",
        ),
        (["rm", " aabb2"], "nothing in "),
        (["rm", "*"], "nothing in "),
        (["rm"], "rm needs 1 key"),
        (["rm", "aaaa"], "demo/llm rests on it; delete that folder first, or add force=true"),
        (["rm", "aabb", "aaaa"], "demo/llm rests on it"),
        (["rm", "aabb", "force=yes"], "force=yes is not known; choose one of: true, false"),
        (["gc", "force=true"], "force= belongs to rm, not to gc"),
        (["gc", "apply=true", "runs="], "runs= is empty; give runs=FOLDER"),
        (["gc", "apply=true", "apply=false"], "apply is given twice"),
        (["ls", "store="], "store is given twice"),
    ],
)
def test_mistakes_are_one_line(home: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    before = sorted((home / "multirun").rglob("*"))
    code, out, err = call(home, capsys, *words)
    assert code == 2 and out == "" and err.count("\n") == 1 and said in err
    assert sorted((home / "multirun").rglob("*")) == before


def test_a_store_that_is_not_there_and_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", f"store={tmp_path / 'no'}"]) == 2
    assert "there is no store" in capsys.readouterr().err
    assert main(["--help"]) == 0
    helped: Any = capsys.readouterr().out
    assert all(word in helped for word in ("ls", "show", "explain", "verify", "gc", "rm", "store="))


def kept(home: Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    return {item["key"] for item in json.loads(call(home, capsys, "ls", "format=json")[1])}


def refer(folder: Path, *keys: str) -> Path:
    folder.mkdir(parents=True)
    path = folder / "store.json"
    path.write_text(json.dumps({"store": "x", "stages": [*keys], "models": ["mmmm"]}))
    return path


def test_job_folders_behind_links_keep_their_stages(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = home / "multirun"
    refer(home / "disk" / "job", "aabb2")
    (runs / "demo" / "moved").symlink_to(home / "disk" / "job")  # a finished job, moved away and linked back
    (home / "disk" / "loop").symlink_to(home / "disk")
    (runs / "again").symlink_to(runs)  # a loop
    (runs / "same").symlink_to(home / "disk")
    code, out, _ = call(home, capsys, "gc", "apply=true")
    assert code == 0 and "2 job folders" in out and kept(home, capsys) == {"aaaa1", "aabb2", "cccc", "mmmm"}
    (runs / "demo" / "moved").unlink()
    (runs / "same").unlink()
    assert call(home, capsys, "gc", "apply=true")[0] == 0
    assert kept(home, capsys) == {"aaaa1", "cccc"}


def test_links_inside_a_linked_sweep_are_followed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refer(home / "elsewhere" / "job", "aabb2")
    (home / "sweep").mkdir()
    (home / "sweep" / "job").symlink_to("../elsewhere/job")
    (home / "multirun" / "sweep").symlink_to("../sweep")
    assert call(home, capsys, "gc", "apply=true")[0] == 0 and "aabb2" in kept(home, capsys)
    record = home / "alone" / "store.json"  # and where only the file itself is a link
    refer(home / "alone", "aabb2").rename(home / "away.json")
    record.symlink_to(home / "away.json")
    (home / "multirun" / "sweep").unlink()
    assert call(home, capsys, "gc", "apply=true", f"runs={home / 'alone'}")[0] == 0
    assert "aabb2" in kept(home, capsys)


@pytest.mark.parametrize("place", ["demo", "demo/job", "demo/llm/store.json", "demo/llm/answers.parquet"])
@pytest.mark.parametrize("target", ["/nowhere/at/all", "itself"])
def test_a_link_to_nowhere_stops_cleaning(
    place: str, target: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = home / "multirun" / place
    if link.exists():
        link.rename(home / "before")
        refer(home / "multirun" / "other", "aaaa1")
    link.symlink_to(link if target == "itself" else target)
    for words in (("gc", "apply=true"), ("gc",), ("rm", "aabb2")):
        code, out, err = call(home, capsys, *words)
        assert code == 2 and out == "" and err.count("\n") == 1 and f"{link} is a link to " in err
    assert kept(home, capsys) == {"aaaa1", "aabb2", "cccc", "mmmm"}
    link.unlink()
    assert call(home, capsys, "gc")[0] == 0


def test_a_finished_job_without_its_references_stops_cleaning(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = home / "multirun" / "demo" / "mlp"
    job.mkdir()
    (job / "results.json").write_text("{}")
    code, _, err = call(home, capsys, "gc", "apply=true")
    assert code == 2 and err.count("\n") == 1 and f"{job} is a finished job without store.json" in err
    assert len(kept(home, capsys)) == 4


def test_a_folder_that_cannot_be_read_stops_cleaning(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = home / "multirun" / "demo" / "llm"
    real = os.scandir

    def refusing(path: Any) -> Any:  # root reads everything, so permissions alone would not show it
        if Path(path) == job:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    code, _, err = call(home, capsys, "gc", "apply=true")
    assert code == 2 and err.count("\n") == 1 and f"{job} cannot be read (Permission denied)" in err
    monkeypatch.undo()
    assert len(kept(home, capsys)) == 4


def test_a_store_that_is_a_link_is_kept_by_jobs_beside_it_and_beside_the_link(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "work").mkdir()
    (home / "work" / ".store").symlink_to(home / "multirun" / ".store")
    refer(home / "work" / "demo" / "one", "aabb2")
    assert main(["gc", "apply=true", f"store={home / 'work' / '.store'}"]) == 0
    assert "2 job folders below" in capsys.readouterr().out
    assert kept(home, capsys) == {"aaaa1", "aabb2", "cccc", "mmmm"}


def test_what_is_filed_while_references_are_read_is_not_removed(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmm_forget.store import maintenance

    real = maintenance.collect_references

    def meanwhile(*given: Any) -> Any:
        stage(Store(home / "multirun" / ".store"), "eeee5", 5)
        return real(*given)

    monkeypatch.setattr(maintenance, "collect_references", meanwhile)
    assert call(home, capsys, "gc", "apply=true")[0] == 0
    assert kept(home, capsys) == {"aaaa1", "cccc", "eeee5"}


def test_a_whole_key_is_no_prefix_of_another_and_force_removes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(home / "multirun" / ".store")
    stage(store, "aabb23", 3)
    assert json.loads(call(home, capsys, "show", "aabb2")[1])["key"] == "aabb2"
    StageCheckpoints(store, "aabb9").save(7, DELTA, {})
    code, _, err = call(home, capsys, "rm", "aabb")  # two stages and a half-trained one
    assert code == 2 and "3 things in " in err
    call(home, capsys, "rm", "aabb23")
    code, _, err = call(home, capsys, "rm", "aabb")  # a stage and another stage's half
    assert code == 2 and "2 things in " in err
    code, out, _ = call(home, capsys, "rm", "aaaa", "aaaa1", "force=true")
    assert code == 0 and out.count("removed stage aaaa1") == 1
    assert kept(home, capsys) == {"aabb2", "aabb9", "cccc", "mmmm"}
