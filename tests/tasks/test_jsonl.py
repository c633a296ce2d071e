"""A user's file: what is read, how it is divided, and what is said about every mistake in it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.tasks.file_rows import FileRow
from lmm_forget.tasks.image_clusters import cluster_rows, divide_rows
from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from lmm_forget.tasks.scoring.letters import OptionLetterScorer
from lmm_forget.tasks.scoring.vqa import VQAAccuracyScorer
from lmm_forget.tasks.task import SPLITS

GOOD = {"id": "a", "image": "a.png", "question": "What color?", "answer": "red"}


def write(folder: Path, rows: Sequence[Any], name: str = "data.jsonl", images: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for row in rows:
        if images and isinstance(row, dict):
            for image in [row["image"]] if isinstance(row.get("image"), str) else row.get("images") or []:
                (folder / image).parent.mkdir(parents=True, exist_ok=True)
                own = (folder / image).resolve().relative_to(folder.resolve()).as_posix()
                color = hashlib.sha256(own.encode()).digest()[:3]  # one picture for each name
                Image.new("RGB", (4, 4), tuple(color)).save(folder / image)
    return folder / name


def task(path: Any, **options: Any) -> JsonlTask:
    given = {"name": "mine", "role": "target", "scorer": ExactMatchScorer(), "max_new_tokens": 4, **options}
    return JsonlTask(path=path if isinstance(path, dict) else str(path), **given)


def many(n: int, per_image: int = 2) -> list[dict[str, Any]]:
    return [{**GOOD, "id": i, "image": f"images/{i // per_image}.png"} for i in range(n)]


def test_a_few_lines_of_yaml_make_the_task(tmp_path: Path) -> None:
    path = write(tmp_path, many(40))
    node = {
        "_target_": "lmm_forget.tasks.jsonl.JsonlTask",
        "name": "mine",
        "role": "target",
        "path": str(path),
        "max_new_tokens": 8,
        "scorer": {"_target_": "lmm_forget.tasks.scoring.exact.ExactMatchScorer"},
    }
    made = instantiate(node)
    train = made.load_samples("train")
    sample = train[0]
    assert sample.answers == ("red",) and sample.question == "What color?"
    assert sample.images[0].mode == "RGB" and sample.images[0].size == (4, 4)
    assert made.score_answer("Red", sample)["value"] == 1.0
    assert [s.id for s in train[:3]] == [train[i].id for i in range(3)]


def test_all_fields(tmp_path: Path) -> None:
    row = {
        "id": 7,
        "images": ["a.png", "sub/b.png"],
        "question": "Which?",
        "answers": ["B", "A"],
        "choices": ["red", "blue"],
        "image_id": "scene 1",
        "category": "color",
    }
    path = write(tmp_path, [row])
    sample = task(path, role="held_out", scorer=OptionLetterScorer(), macro="category").load_samples("test")[0]
    assert (sample.id, sample.image_id, sample.answers) == ("7", "scene 1", ("B", "A"))
    assert sample.question == "Which?\nA. red\nB. blue"
    assert sample.choices == ("red", "blue") and sample.meta == {"category": "color"}
    assert len(sample.images) == 2
    plain = task(path, role="held_out", scorer=OptionLetterScorer(), list_choices=False)
    assert plain.load_samples("test")[0].question == "Which?"


def test_no_image_is_in_two_splits_and_questions_of_an_image_stay_together(tmp_path: Path) -> None:
    made = task(write(tmp_path, many(600, per_image=3)))
    parts = {split: made.load_samples(split) for split in SPLITS}
    assert sum(len(part) for part in parts.values()) == 600
    ids = {split: set(part.image_ids) for split, part in parts.items()}
    assert not ids["train"] & ids["test"] and not ids["train"] & ids["validation"]
    assert not ids["test"] & ids["validation"]
    # 200 images: test 20 %, validation 10 %, within five standard deviations.
    assert 12 <= len(ids["test"]) <= 68 and 3 <= len(ids["validation"]) <= 41
    assert all(len(part) == 3 * len(ids[split]) for split, part in parts.items())


def test_splits_do_not_depend_on_other_rows_or_on_the_folder(tmp_path: Path) -> None:
    small = task(write(tmp_path / "one", many(100)))
    large = task(write(tmp_path / "two", list(reversed(many(200)))))
    for split in SPLITS:
        there = set(large.load_samples(split).image_ids)
        assert set(small.load_samples(split).image_ids) <= there
    other = task(tmp_path / "one" / "data.jsonl", split_seed=1)
    assert set(other.load_samples("test").image_ids) != set(small.load_samples("test").image_ids)


def test_rows_that_share_an_image_form_one_cluster(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "id": 1, "image": "b.png"},
        {"id": 2, "images": ["c.png", "./b.png"], "question": "?", "answer": "x"},
        {**GOOD, "id": 3, "image": "sub/../c.png"},
        {**GOOD, "id": 4, "image": "d.png"},
        {"id": 5, "images": [], "question": "?", "answer": "x"},
    ]
    (tmp_path / "sub").mkdir()
    samples = task(write(tmp_path, rows), role="held_out").load_samples("test")
    assert [s.image_id for s in samples] == ["b.png", "b.png", "b.png", "d.png", "5"]


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 12), max_size=3), min_size=1, max_size=20),
    seed=st.integers(0, 5),
)
def test_divide_never_puts_an_image_into_two_splits(rows: list[list[int]], seed: int) -> None:
    made = [
        FileRow(
            id=str(i),
            location=f"x:{i}",
            images=tuple(Path(f"/x/{n}") for n in images),
            image_names=tuple(f"{n}" for n in images),
            image_id=None,
            question="?",
            answers=("a",),
            choices=None,
            split=None,
        )
        for i, images in enumerate(rows)
    ]
    found = divide_rows(made, cluster_rows(made, {}), {"test": 0.4, "validation": 0.3}, seed)
    assert sorted(i for at in found.values() for i in at) == list(range(len(rows)))
    shown = {split: {n for i in at for n in rows[i]} for split, at in found.items()}
    assert not shown["train"] & shown["test"] | shown["train"] & shown["validation"]
    assert not shown["test"] & shown["validation"]


def test_split_field_and_separate_files(tmp_path: Path) -> None:
    rows = [{**row, "split": "train" if i < 6 else "test"} for i, row in enumerate(many(10))]
    made = task(write(tmp_path, rows))
    assert [len(made.load_samples(s)) for s in ("train", "test")] == [6, 4]
    with pytest.raises(DataError, match=r"no validation samples \(train 6, validation 0, test 4\)"):
        made.load_samples("validation")
    train, test = write(tmp_path / "train", many(200)), write(tmp_path / "test", many(10))
    files = task({"train": str(train), "test": str(test)})  # image names are equal, the files are not
    assert len(files.load_samples("test")) == 10
    assert len(files.load_samples("train")) + len(files.load_samples("validation")) == 200
    assert len(files.load_samples("validation")) > 0


def test_images_root(tmp_path: Path) -> None:
    write(tmp_path / "pictures", [GOOD])
    path = write(tmp_path / "text", [GOOD], images=False)
    assert len(task(path, role="held_out", images_root=str(tmp_path / "pictures")).validate_split("test")) == 1


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    first = write(tmp_path / "one", many(40))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    second = tmp_path / "two" / "data.jsonl"
    assert task(first).fingerprint_split("train") == task(second).fingerprint_split("train")
    assert task(first).fingerprint_split("train") != task(first).fingerprint_split("test")
    shown = task(second).load_samples("train").rows[0].images[0]
    Image.new("RGB", (4, 4), "blue").save(shown)
    assert task(first).fingerprint_split("train") != task(second).fingerprint_split("train")
    shutil.copytree(tmp_path / "one", tmp_path / "three")
    third = tmp_path / "three" / "data.jsonl"
    third.write_text(third.read_text().replace("What color?", "Which color?"))
    assert task(first).fingerprint_split("train") != task(third).fingerprint_split("train")


BROKEN = [
    ('{"id": 1, ', "data.jsonl:2: not valid JSON"),
    ("[1, 2]", "data.jsonl:2: a list, not an object"),
    ('"text"', "data.jsonl:2: a str, not an object"),
    (
        {"id": "b", "image": "a.png", "answer": "x"},
        r"data.jsonl:2 \(id b\): no 'question'; the line has 'id', 'image', 'answer'",
    ),
    (
        {"id": "b", "image": "a.png", "question": "?"},
        r"data.jsonl:2 \(id b\): no 'answer' or 'answers'; the line has 'id'",
    ),
    (
        {"id": "b", "question": "?", "answer": "x"},
        r"data.jsonl:2 \(id b\): no 'image' or 'images'; the line has 'id'",
    ),
    ({"image": "a.png", "question": "?", "answer": "x"}, "data.jsonl:2: no 'id'; the line has 'image'"),
    ({**GOOD, "id": "a"}, r"data.jsonl:2: id 'a' is used already, at \S*data.jsonl:1"),
    ({**GOOD, "id": "b", "answers": ["x"]}, r"data.jsonl:2 \(id b\): both 'answer' and 'answers'"),
    (
        {"id": "b", "image": "a.png", "question": "?", "answers": []},
        r"data.jsonl:2 \(id b\): 'answers' is \[\], not a list",
    ),
    ({**GOOD, "id": "b", "answer": None}, r"data.jsonl:2 \(id b\): 'answer' is null, not a text"),
    ({**GOOD, "id": "b", "answer": True}, r"data.jsonl:2 \(id b\): 'answer' is true, not a text"),
    ({**GOOD, "id": "b", "answer": float("nan")}, r"data.jsonl:2 \(id b\): 'answer' is NaN, not a text"),
    ({**GOOD, "id": "b", "question": "  "}, r"data.jsonl:2 \(id b\): 'question' is empty"),
    (
        {**GOOD, "id": "b", "question": "\ud800"},
        r"data.jsonl:2 \(id b\): 'question' holds half of a surrogate pair",
    ),
    (
        {**GOOD, "id": "b", "split": "dev"},
        r"data.jsonl:2 \(id b\): split 'dev' is not one of train, validation, test",
    ),
    ({**GOOD, "id": "b", "split": "test"}, "data.jsonl:1: no 'split', but .*data.jsonl:2 has one"),
    ({**GOOD, "id": "b", "choices": ["x"]}, r"data.jsonl:2 \(id b\): 1 choices; there can be 2 to 26"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_a_broken_line_is_named_with_its_number(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path, [GOOD, line], images=False)
    with pytest.raises(DataError, match=message) as caught:
        task(path).load_samples("train")
    assert "\n" not in str(caught.value)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl is missing"):
        task(tmp_path / "none.jsonl").load_samples("train")
    with pytest.raises(DataError, match="is a folder"):
        task(tmp_path).load_samples("train")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"empty\.jsonl is empty"):
        task(tmp_path / "empty.jsonl").load_samples("train")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl:1: not UTF-8"):
        task(tmp_path / "latin.jsonl").load_samples("train")
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert len(task(tmp_path / "bom.jsonl", role="held_out").load_samples("test")) == 1


def test_wrong_choices_in_the_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, many(40))
    with pytest.raises(ConfigError, match="leave something to train on"):
        task(path, test_fraction=1.0)
    with pytest.raises(ConfigError, match="path has dev"):
        task({"dev": str(path)}).load_samples("test")
    with pytest.raises(DataError, match="no split 'dev'"):
        task(path).load_samples("dev")
    with pytest.raises(ConfigError, match="on_bad_sample=ignore"):
        task(path).validate_split("test", "ignore")
    rows = [{**row, "split": "train" if i % 2 else "test"} for i, row in enumerate(many(4))]
    with pytest.raises(DataError, match=r"data.jsonl:2: image images/0.png is in split train here and in test at"):
        task(write(tmp_path, rows)).load_samples("train")


def test_bad_images_are_counted_over_the_whole_file(tmp_path: Path) -> None:
    rows = many(60, per_image=1)
    path = write(tmp_path, rows)
    (tmp_path / "images/3.png").unlink()
    (tmp_path / "images/17.png").write_bytes(b"no image")
    made = task(path)
    for split in ("train", "test"):
        with pytest.raises(DataError) as caught:
            made.validate_split(split)
        said = str(caught.value)
        assert said.startswith("task mine: 2 of 60 samples cannot be used (first: ")
        assert re.search(
            r"first: (3: image \S+3\.png is missing|17: image \S+17\.png cannot be read \(not an image)", said
        )
        assert said.endswith("data.on_bad_sample=skip leaves them out")
    usable = {split: made.validate_split(split, "skip") for split in SPLITS}
    assert sum(len(part) for part in usable.values()) == 58
    assert sum(len(part.skipped) for part in usable.values()) == 2
    assert not {"3", "17"} & {sample.id for part in usable.values() for sample in part}
    whole = made.load_samples("train")
    bad = [i for i, row in enumerate(whole.rows) if row.id in ("3", "17")]
    for i in bad:
        with pytest.raises(DataError, match=f"sample {whole.rows[i].id}: image"):
            whole[i]


def test_a_reference_that_the_scorer_cannot_use_is_a_bad_sample(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "id": 1, "choices": ["red", "blue"], "answer": "A"},
        {**GOOD, "id": 2, "choices": ["red", "blue"], "answer": "blue"},
    ]
    made = task(write(tmp_path, rows), role="held_out", scorer=OptionLetterScorer())
    with pytest.raises(DataError, match="1 of 2 samples cannot be used .first: 2: answer 'blue' is not an option's"):
        made.validate_split("test")
    assert [sample.id for sample in made.validate_split("test", "skip")] == ["1"]


def test_nothing_left_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    made = task(write(tmp_path, [GOOD], images=False), role="held_out")
    with pytest.raises(DataError, match="none of the 1 test samples can be used"):
        made.validate_split("test", "skip")


def test_annotators_may_disagree(tmp_path: Path) -> None:
    rows = [{k: v for k, v in GOOD.items() if k != "answer"} | {"answers": ["red", "crimson"] + ["dark red"] * 8}]
    made = task(write(tmp_path, rows), scorer=VQAAccuracyScorer(), test_fraction=0.0, validation_fraction=0.0)
    assert [sample.answers[:2] for sample in made.validate_split("train")] == [("red", "crimson")]
