"""One policy for samples that cannot be used: every reader, every fault; refused together or left out and counted."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, List, Value

from lmm_forget.data.inspection import inspect_splits
from lmm_forget.errors import ConfigError, DataError
from lmm_forget.evaluation.eval_set import EvalSet
from lmm_forget.tasks.clock_task import ClockTask
from lmm_forget.tasks.csv_table import CsvTask
from lmm_forget.tasks.hub import HubTask
from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.llava import LlavaTask
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from lmm_forget.tasks.subset import SubsetTask
from lmm_forget.tasks.task import Task
from tests.tasks.published import clocks, png, stored
from tests.tasks.published import write as published

COMMON: dict[str, Any] = {"name": "mine", "role": "held_out", "scorer": ExactMatchScorer(), "max_new_tokens": 4}
N, ODD = 6, (2, 4)
"""Rows of every file, and those that are spoilt."""
Spoil = Callable[[dict[str, Any]], Any]


def rows(spoil: Spoil | None = None) -> list[Any]:
    """Rows with pictures of their own, the odd ones spoilt (changed in place, or another value returned)."""
    found: list[Any] = []
    for i in range(N):
        row: dict[str, Any] = {"id": f"q{i}", "image": f"{i}.png", "question": "Which?", "answer": f"a{i}"}
        other = spoil(row) if spoil and i in ODD else None
        found.append(row if other is None else other)
    return found


def pictures(folder: Path) -> None:
    for i in range(N):
        (folder / f"{i}.png").write_bytes(png(i))


def jsonl(folder: Path, given: list[Any], **options: Any) -> Task:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in given]
    (folder / "data.jsonl").write_bytes(b"\n".join(lines))
    return JsonlTask(path=str(folder / "data.jsonl"), **{**COMMON, **options})


def llava(folder: Path, given: list[Any], **options: Any) -> Task:
    def item(row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        turns = [{"from": "human", "value": "<image>\n" + row["question"]}] if "question" in row else []
        turns += [{"from": "gpt", "value": row["answer"]}] if "answer" in row else []
        kept = {key: row[key] for key in ("id", "image", "split") if key in row}
        return {**kept, "conversations": turns}

    (folder / "data.json").write_text(json.dumps([item(row) for row in given]))
    return LlavaTask(path=str(folder / "data.json"), **{**COMMON, **options})


def table(folder: Path, given: list[Any], **options: Any) -> Task:
    keys = list(dict.fromkeys(key for row in given if isinstance(row, dict) for key in row))
    with open(folder / "data.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(keys)
        writer.writerows([row.get(key, "") for key in keys] if isinstance(row, dict) else ["one cell"] for row in given)
    return CsvTask(path=str(folder / "data.csv"), **{**COMMON, **options})


def hub(folder: Path, given: list[Any], **options: Any) -> Task:
    kinds = {"id": Value("string"), "image": Image(), "question": Value("string"), "answer": Value("string")}

    def stored_row(row: dict[str, Any]) -> dict[str, Any]:
        path = folder / str(row.get("image"))
        image = {"bytes": path.read_bytes(), "path": None} if path.is_file() else None
        return {**{key: row.get(key) for key in kinds}, "image": image}

    data = Dataset.from_list([stored_row(row) for row in given], features=Features(kinds))
    data.to_parquet(str(folder / "data.parquet"))
    fields = {key: key for key in kinds}
    given_options = {"fields": fields, "splits": {"test": "test"}, **COMMON, **options}
    return HubTask(path={"test": str(folder / "data.parquet")}, **given_options)


READERS = {"jsonl": jsonl, "llava": llava, "table": table, "hub": hub}


def put(**values: Any) -> Spoil:
    return lambda row: row.update(values)


def drop(key: str) -> Spoil:
    return lambda row: row.pop(key) and None


# A fault, how rows get it, the readers that can have it, and what is said of it.
FAULTS: dict[str, tuple[Spoil, str, str]] = {
    "empty answer": (put(answer=""), "jsonl llava hub", "answer|gpt turn"),
    "empty cell": (put(answer=""), "table", "no 'answer' or 'answers'"),
    "blank answer": (put(answer=" \n "), "jsonl llava hub", "empty"),
    "no answer": (drop("answer"), "jsonl llava table hub", "answer|turn"),
    "null answer": (put(answer=None), "jsonl llava hub", "null"),
    "empty question": (put(question=" "), "jsonl llava hub", "empty|turn"),
    "no question": (drop("question"), "jsonl llava table hub", "question|turn"),
    "an id twice": (put(id="q0"), "jsonl llava table hub", "used already|again"),
    "missing picture": (put(image="gone.png"), "jsonl llava table", "is missing"),
    "null picture": (put(image="gone.png"), "hub", "null"),
    "wrong type": (put(answer={"a": 1}), "jsonl llava", "not a text"),
    "true": (put(answer=True), "jsonl llava", "store the word"),
    "not a number": (put(answer=float("nan")), "jsonl llava", "NaN"),
    "unknown split": (put(split="dev"), "jsonl llava table", "'dev' is not one of"),
    "a split in some rows": (put(split=None), "jsonl llava", "no 'split', but"),
    "no id": (drop("id"), "jsonl", "no 'id'"),
    "null id": (put(id=None), "jsonl hub", "null"),
    "not an object": (lambda row: ["a list"], "jsonl llava", "not an object"),
    "not JSON": (lambda row: b'{"id": 1,', "jsonl", "not valid JSON"),
    "a key twice": (lambda row: b'{"id": 1, "id": 2}', "jsonl", "'id' stands twice"),
    "not UTF-8": (lambda row: b'{"id": "\xe9"}', "jsonl", "not UTF-8"),
    "too few cells": (lambda row: ["one"], "table", "1 cells under 4 columns"),
    "more marks than pictures": (
        put(question="<image><image>?"),
        "jsonl llava table",
        "2 <image> marks and 1|3 <image>",
    ),
    "system prompt that is no text": (put(system=[1]), "jsonl", "'system' is"),
}
CASES = [(fault, reader) for fault, (_, readers, _) in FAULTS.items() for reader in readers.split()]


def spoilt(fault: str, reader: str, folder: Path, **options: Any) -> Task:
    pictures(folder)
    given = rows(FAULTS[fault][0])
    if fault == "a split in some rows":
        given = [{**row, **({"split": "test"} if row.get("split", "") == "" else {})} for row in given]
    return READERS[reader](folder, given, **options)


@pytest.mark.parametrize(("fault", "reader"), CASES)
def test_a_fault_is_refused_with_its_number_or_left_out(fault: str, reader: str, tmp_path: Path) -> None:
    task = spoilt(fault, reader, tmp_path)
    with pytest.raises(
        DataError, match=rf"^task mine: 2 of 6 (test )?samples cannot be used \(first: .*({FAULTS[fault][2]})"
    ) as caught:
        task.validate_split("test")
    said = str(caught.value)
    assert said.endswith("; data.on_bad_sample=skip leaves them out") and "; then " in said and "\n" not in said
    left = task.validate_split("test", "skip")
    assert [sample.answers[0] for sample in left] == ["a0", "a1", "a3", "a5"]
    exam = EvalSet.from_task(task, "test", None, "skip")
    assert len(exam.samples.skipped) == 2, "as many are counted in the record"
    assert task.fingerprint_split("test")


@pytest.mark.parametrize(("fault", "reader"), [case for case in CASES if case[0] != "missing picture"])
def test_data_check_shows_what_a_run_refuses(fault: str, reader: str, tmp_path: Path) -> None:
    task = spoilt(fault, reader, tmp_path)
    parts, absent = inspect_splits(task)
    seen = next(part for part in parts if part.split == "test")
    assert (seen.total_samples, seen.read_samples, len(seen.unusable)) == (6, 4, 2)
    assert "test" not in absent


@pytest.mark.parametrize("reader", READERS)
def test_a_part_of_a_split_follows_the_policy(reader: str, tmp_path: Path) -> None:
    part = SubsetTask(spoilt("blank answer" if reader != "table" else "empty cell", reader, tmp_path), samples=3)
    with pytest.raises(DataError, match=r"2 of \d (test )?samples cannot be used"):
        part.validate_split("test")
    with pytest.raises(DataError, match=r"2 of \d (test )?samples cannot be used"):
        part.load_samples("test")
    left = part.validate_split("test", "skip")
    assert len(left) == 3 and {sample.answers[0] for sample in left} <= {"a0", "a1", "a3", "a5"}
    assert len(left.skipped) == 2


def test_the_first_of_equal_ids_is_kept_and_the_others_say_where_it_is(tmp_path: Path) -> None:
    pictures(tmp_path)
    for reader, make in READERS.items():
        task = make(tmp_path, [{**row, "id": "same"} for row in rows()])
        assert [sample.answers[0] for sample in task.validate_split("test", "skip")] == ["a0"]
        with pytest.raises(DataError, match=r"5 of 6 .*(used already, at .*(:1|:2|item 0)|id of row 0 again)"):
            task.validate_split("test")
        assert reader in READERS


def test_separate_files_share_ids_and_each_has_its_own_bad_rows(tmp_path: Path) -> None:
    for name, odd in (("train", put(answer="")), ("test", put(split="train"))):
        given = [{"split": name, **row, "images": [], "question": f"{name}?"} for row in rows(odd)]
        for row in given:
            del row["image"]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, given)))
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    task = JsonlTask(path=paths, **{**COMMON, "role": "target", "validation_fraction": 0.0})
    with pytest.raises(DataError, match="4 of 12 samples cannot be used"):
        task.validate_split("train")
    train, test = task.validate_split("train", "skip"), task.validate_split("test", "skip")
    assert (len(train), len(train.skipped), len(test), len(test.skipped)) == (4, 2, 4, 2)
    assert "split 'train' in the file that `path` gives for test" in next(iter(test.skipped.values()))


def test_a_file_of_nothing_but_bad_rows_is_refused_also_when_they_are_skipped(tmp_path: Path) -> None:
    pictures(tmp_path)
    for make in READERS.values():
        task = make(tmp_path, [{**row, "answer": "", "other": "x"} for row in rows()])
        with pytest.raises(DataError, match="6 of 6 (test )?samples cannot be used"):
            task.validate_split("test")
        with pytest.raises(DataError, match="none is left; none of the 6 test samples can be used"):
            task.validate_split("test", "skip")
        with pytest.raises(ConfigError, match="on_bad_sample=perhaps is unknown; there are fail, skip"):
            task.validate_split("test", "perhaps")


def test_a_training_file_of_a_published_task_follows_the_policy(tmp_path: Path) -> None:
    (tmp_path / "clocks").mkdir()
    file = clocks(tmp_path / "clocks")
    items = json.loads(file.read_text())
    items[3]["conversations"][1]["value"], items[5]["id"] = " ", items[0]["id"]
    file.write_text(json.dumps(items))
    task = ClockTask(
        name="timeclock",
        role="target",
        path=str(published("timeclock", tmp_path / "hub")),
        splits={"test": "train"},
        fields={"question": "question", "answer": "answer", "image": "image"},
        train_path=str(file),
        scorer=ExactMatchScorer(),
        max_new_tokens=8,
    )
    with pytest.raises(
        DataError,
        match=r"task timeclock: 2 of 8 train samples cannot be used \(first: .*item 3 \(id 3\): 'gpt",
    ):
        task.validate_split("train")
    left = task.validate_split("train", "skip")
    assert [sample.id for sample in left] == ["0", "1", "2", "4", "6", "7"] and len(left.skipped) == 2
    assert task.fingerprint_split("train") and len(task.validate_split("test")) == 8


def test_a_null_image_id_is_a_bad_sample_and_no_cluster_of_its_own(tmp_path: Path) -> None:
    kinds = {
        "image": Image(),
        "question": Value("string"),
        "answers": List(Value("string")),
        "photo": Value("float32"),
    }
    given = [
        {"image": stored(i), "question": "?", "answers": ["x"], "photo": None if i in ODD else i / 2} for i in range(20)
    ]
    Dataset.from_list(given, features=Features(kinds)).to_parquet(str(tmp_path / "rows.parquet"))
    fields = {"image": "image", "question": "question", "answers": "answers", "image_id": "photo"}
    task = HubTask(
        path={"train": str(tmp_path / "rows.parquet")},
        fields=fields,
        splits={"train": "train"},
        validation_fraction=0.3,
        **{**COMMON, "role": "target"},
    )
    parts = [task.validate_split(split, "skip") for split in ("train", "validation")]
    assert sum(len(part) for part in parts) == 18 and sum(len(part.skipped) for part in parts) == 2
    assert {"0", "0.5", "1.5"} <= {sample.image_id for part in parts for sample in part}
