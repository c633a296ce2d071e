"""The same picture under several names: one cluster, one split, and a word where given splits share it."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image, PngImagePlugin

from lmm_forget.config import compose_config, resolve_config
from lmm_forget.experiment.context import build_context
from lmm_forget.progress import NullProgress
from lmm_forget.tasks.csv_table import CsvTask
from lmm_forget.tasks.hub import HubTask
from lmm_forget.tasks.image_clusters import assign_splits
from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.llava import LlavaTask
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from lmm_forget.tasks.subset import SubsetTask
from lmm_forget.tasks.task import SPLITS, Task
from tests.tasks.test_own_data import turn

COMMON: dict[str, Any] = {"name": "mine", "role": "target", "max_new_tokens": 4, "scorer": ExactMatchScorer()}
Rows = Sequence[dict[str, Any]]


def picture(content: int, note: str = "") -> bytes:
    """A PNG; `note` changes its bytes and not its pixels."""
    written, text = io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_text("note", note)
    Image.new("RGB", (5, 4), (content, 255 - content, 7)).save(written, "PNG", pnginfo=text if note else None)
    return written.getvalue()


def stored(folder: Path, content: int, name: str, note: str = "") -> str:
    (folder / "pics").mkdir(parents=True, exist_ok=True)
    (folder / "pics" / f"{name}.png").write_bytes(picture(content, note))
    return f"pics/{name}.png"


def jsonl(folder: Path, rows: Rows, **options: Any) -> Task:
    lines = [{"id": row["id"], "images": row["images"], "question": "?", "answer": "x"} for row in rows]
    for line, row in zip(lines, rows, strict=True):
        line.update({"split": row["split"]} if "split" in row else {})
    (folder / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return JsonlTask(path=str(folder / "mine.jsonl"), **{**COMMON, **options})


def urls(folder: Path, rows: Rows, **options: Any) -> Task:
    def url(name: str) -> str:
        return "data:image/png;base64," + base64.b64encode((folder / name).read_bytes()).decode()

    return jsonl(folder, [{**row, "images": [url(name) for name in row["images"]]} for row in rows], **options)


def llava(folder: Path, rows: Rows, **options: Any) -> Task:
    items = [
        {
            "id": row["id"],
            "images": row["images"],
            "conversations": turn("<image>" * len(row["images"]) + "\n?", "x"),
            **({"split": row["split"]} if "split" in row else {}),
        }
        for row in rows
    ]
    (folder / "mine.json").write_text(json.dumps(items))
    return LlavaTask(path=str(folder / "mine.json"), **{**COMMON, **options})


def table(folder: Path, rows: Rows, **options: Any) -> Task:
    with open(folder / "mine.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["id", "images", "question", "answer", *(["split"] if "split" in rows[0] else [])])
        for row in rows:
            out.writerow([row["id"], "|".join(row["images"]), "?", "x", *([row["split"]] if "split" in row else [])])
    return CsvTask(path=str(folder / "mine.csv"), **{**COMMON, **options})


def hub(folder: Path, rows: Rows, *, held: bool, **options: Any) -> Task:
    """A data set on disk whose rows hold their pictures, or only name them."""
    options.pop("test_fraction", None)
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        images = [{"bytes": (folder / name).read_bytes(), "path": None} if held else name for name in row["images"]]
        line = {"key": row["id"], "images": images, "prompt": "?", "reply": "x"}
        parts.setdefault(row.get("split", "train"), []).append(line)
    for split, part in parts.items():
        datasets.Dataset.from_list(part).save_to_disk(folder / "hub" / split)
    given: dict[str, Any] = {
        "path": {split: str(folder / "hub" / split) for split in parts},
        "splits": {split: split for split in parts},
        "fields": {"id": "key", "image": "images", "question": "prompt", "answer": "reply"},
        "images_root": str(folder),
    }
    return HubTask(**{**COMMON, **given, **options})


def hub_with_pictures(folder: Path, rows: Rows, **options: Any) -> Task:
    return hub(folder, rows, held=True, **options)


def hub_with_paths(folder: Path, rows: Rows, **options: Any) -> Task:
    return hub(folder, rows, held=False, **options)


READERS = (jsonl, urls, llava, table, hub_with_pictures, hub_with_paths)
Reader = Callable[..., Task]


@pytest.mark.parametrize("reader", READERS)
def test_no_picture_is_in_two_splits_whatever_its_files_are_called(tmp_path: Path, reader: Reader) -> None:
    """40 pictures, each saved three times under the name of its question, once with a comment in the file."""
    names = [
        (content, stored(tmp_path, content, f"q{i:03}", "again" if i >= 80 else ""))
        for i, content in enumerate([*range(40), *range(40), *range(40)])
    ]
    rows = [{"id": f"{content}-{i}", "images": [name]} for i, (content, name) in enumerate(names)]
    task = reader(tmp_path, rows, validation_fraction=0.3, test_fraction=0.0)
    parts = {split: task.validate_split(split) for split in ("train", "validation")}
    shown = {split: [sample.id.partition("-")[0] for sample in part] for split, part in parts.items()}
    assert not set(shown["train"]) & set(shown["validation"])
    assert sorted(map(len, shown.values()))[0] >= 12 and sum(map(len, shown.values())) == 120
    for part in parts.values():
        pairs = {(sample.id.partition("-")[0], sample.image_id) for sample in part}
        assert len(pairs) == len({content for content, _ in pairs}) == len({image for _, image in pairs})
    assert task.find_split_overlap() == {}


@pytest.mark.parametrize("reader", READERS)
def test_a_cluster_is_what_pictures_connect(tmp_path: Path, reader: Reader) -> None:
    names = [stored(tmp_path, content, f"n{i}") for i, content in enumerate([1, 2, 2, 3, 3, 4, 5])]
    rows = [
        {"id": "a", "images": names[0:2], "split": "test"},
        {"id": "b", "images": names[2:4], "split": "test"},
        {"id": "c", "images": names[4:6], "split": "test"},
        {"id": "d", "images": names[6:7], "split": "test"},
    ]
    first, second, third, other = (sample.image_id for sample in reader(tmp_path, rows).validate_split("test"))
    assert first == second == third != other


def test_a_part_that_is_checked_again_keeps_its_clusters(tmp_path: Path) -> None:
    names = [stored(tmp_path, content, f"n{i}") for i, content in enumerate([1, 2, 2, 3, 4, 5, 6, 7, 8, 9])]
    rows = [{"id": f"{i}", "images": names[i : i + 2], "split": "test"} for i in range(0, 10, 2)]
    whole = hub_with_pictures(tmp_path, rows)
    part = SubsetTask(whole, samples=4)
    clusters = [[sample.image_id for sample in task.validate_split("test")] for task in (whole, part, part, whole)]
    assert clusters[0] == clusters[3] and len(set(clusters[0])) == 4
    assert clusters[1] == clusters[2]


@pytest.mark.parametrize("reader", READERS)
def test_given_splits_that_share_pictures_say_so(tmp_path: Path, reader: Reader) -> None:
    rows = [
        {
            "id": f"{split}{content}",
            "images": [stored(tmp_path, content, f"{split}{content}")],
            "split": split,
        }
        for split, contents in (("train", range(6)), ("test", (4, 5, 9)))
        for content in contents
    ]
    task = reader(tmp_path, rows, validation_fraction=0.0)
    assert [len(task.validate_split(split)) for split in ("train", "test")] == [6, 3]
    assert task.find_split_overlap() == {("train", "test"): [("train4", "test4"), ("train5", "test5")]}


@pytest.mark.parametrize("reader", [jsonl, hub_with_pictures])
def test_names_and_other_rows_do_not_move_a_picture(tmp_path: Path, reader: Reader) -> None:
    def places(folder: Path, contents: Sequence[int], prefix: str) -> dict[str, str]:
        rows = [{"id": f"{c}", "images": [stored(folder, c, f"{prefix}{c}")]} for c in contents]
        task = reader(folder, rows, validation_fraction=0.4, test_fraction=0.0)
        return {sample.id: split for split in ("train", "validation") for sample in task.validate_split(split)}

    before = places(tmp_path / "one", range(20), "a")
    after = places(tmp_path / "two", range(30), "z")
    assert len(set(before.values())) == 2 and before.items() <= after.items()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_few_pictures_are_divided_too(count: int) -> None:
    """No split stays empty for want of luck where there are pictures for it."""
    for seed in range(60):
        found = set(assign_splits(map(str, range(count)), {"test": 0.2, "validation": 0.1}, seed).values())
        assert found == ({"train", "test"} if count == 2 else set(SPLITS)), seed
        assert assign_splits([str(seed)], {"test": 0.2, "validation": 0.1}, 0) == {str(seed): "train"}


def test_four_colors_in_twenty_four_files_can_be_taught_and_held_out(tmp_path: Path) -> None:
    rows = [{"id": f"{i % 4}-{i}", "images": [stored(tmp_path, i % 4, f"{i}")]} for i in range(24)]
    for seed in range(8):
        task = jsonl(tmp_path, rows, split_seed=seed)
        shown = [{sample.id[0] for sample in task.validate_split(split)} for split in SPLITS]
        assert sum(map(len, shown)) == 4 == len(set().union(*shown)) and all(shown)
        sides = [
            jsonl(tmp_path, rows, role=role, split_seed=seed, held_out_fraction=0.1) for role in ("target", "held_out")
        ]
        taught = {sample.id[0] for sample in sides[0].validate_split("train")}
        held = {sample.id[0] for sample in sides[1].validate_split("test")}
        assert taught and held and not taught & held


def test_a_given_image_id_joins_other_pictures_and_their_copies(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "image": stored(tmp_path, 1, "a"), "image_id": "scene"},
        {"id": "b", "image": stored(tmp_path, 2, "b"), "image_id": "scene"},
        {"id": "c", "image": stored(tmp_path, 2, "c")},
        {"id": "d", "image": stored(tmp_path, 3, "d")},
    ]
    text = "".join(json.dumps({**line, "question": "?", "answer": "x"}) + "\n" for line in lines)
    (tmp_path / "mine.jsonl").write_text(text)
    task = JsonlTask(path=str(tmp_path / "mine.jsonl"), **{**COMMON, "role": "held_out"})
    assert [sample.image_id for sample in task.validate_split("test")] == [
        "scene",
        "scene",
        "scene",
        "pics/d.png",
    ]


def test_the_fingerprint_of_rows_that_name_their_pictures_follows_the_pictures(tmp_path: Path) -> None:
    rows = [{"id": f"{i}", "images": [stored(tmp_path / "one", i, f"{i}")], "split": "test"} for i in range(3)]
    one = hub_with_paths(tmp_path / "one", rows)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    two = hub_with_paths(tmp_path / "two", rows)
    assert one.fingerprint_split("test") == two.fingerprint_split("test"), "the place plays no role"
    stored(tmp_path / "two", 77, "1")
    assert one.fingerprint_split("test") != two.fingerprint_split("test") == two.fingerprint_split("test")


def test_a_run_warns_of_shared_pictures_and_clusters_by_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `data check` tells, `run` tells too; answers about copies of a picture are drawn together."""
    names = [stored(tmp_path, content, f"{i}") for i, content in enumerate([1, 2, 3, 4, 2, 3, 8, 8])]
    rows = [{"id": f"q{i}", "images": [name], "split": "train" if i < 4 else "test"} for i, name in enumerate(names)]
    jsonl(tmp_path, rows)
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "mine.yaml").write_text(
        f"# Mine.\n_target_: lmm_forget.tasks.jsonl.JsonlTask\nrole: target\npath: {tmp_path / 'mine.jsonl'}\n"
        "max_new_tokens: 4\nscorer: {_target_: lmm_forget.tasks.scoring.exact.ExactMatchScorer}\n"
    )
    choices = ["experiment=smoke", "sequence=single", "sequence.task=mine", "suite.tasks=[ai2d]"]
    choices += ["training.max_steps=1", "training.global_batch_size=4", "hardware.micro_batch_size=4"]
    choices += ["data.train_samples=null", "data.eval_samples=null", f"store={tmp_path / 'store'}"]
    config = resolve_config(compose_config(choices, str(tmp_path / "conf")))
    ground = build_context(config, tmp_path, NullProgress(), [])
    wanted = "task mine: 2 pictures of train are also in test (first: q1 = q4, q2 = q5)"
    assert any(notice.startswith(wanted) for notice in ground.warnings)
    assert f"lmm-forget: note: {wanted}" in capsys.readouterr().err
    exam = next(one for one in ground.eval_sets if one.task.name == "mine")
    exam.prepare_batches(ground.lmm, 2)
    assert [sample.image_id for sample in exam.samples_without_images] == [
        "pics/1.png",
        "pics/2.png",
        "pics/6.png",
        "pics/6.png",
    ]
