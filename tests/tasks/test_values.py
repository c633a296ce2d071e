"""The rules by which a stored value becomes text: as a table, and the same in every reader."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.tasks.csv_table import CsvTask
from lmm_forget.tasks.hub import HubTask
from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.llava import LlavaTask
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from lmm_forget.tasks.subset import SubsetTask
from lmm_forget.tasks.text_values import convert_to_text
from tests.tasks.published import png, stored

COMMON: dict[str, Any] = {"name": "mine", "role": "held_out", "scorer": ExactMatchScorer(), "max_new_tokens": 4}

TEXTS: list[tuple[Any, str]] = [
    ("red", "red"),
    (" red", "red"),
    ("red\n", "red"),
    ("\tred \r\n", "red"),
    ("dark  red\nor pink ", "dark  red\nor pink"),
    ("\u00a0red\u200b", "red"),
    ("\ufeffred\x00", "red"),
    ("re\u00add", "re\u00add"),
    ("3.0", "3.0"),
    ("007", "007"),
    ("true", "true"),
    (np.str_("red "), "red"),
    (3, "3"),
    (-3, "-3"),
    (2**70, "1180591620717411303424"),
    (np.int8(-5), "-5"),
    (np.uint64(2**64 - 1), "18446744073709551615"),
    (3.0, "3"),
    (-0.0, "0"),
    (0.1, "0.1"),
    (-2.5, "-2.5"),
    (1e-7, "1e-07"),
    (1e22, "10000000000000000000000"),
    (123456789.25, "123456789.25"),
    (0.1 + 0.2, "0.30000000000000004"),
    (np.float32(0.1), "0.1"),
    (np.float32(3), "3"),
    (np.float32(16777216), "16777216"),
    (np.float32(1 / 3), "0.33333334"),
    (np.float16(0.1), "0.1"),
    (np.float16(2048), "2048"),
    (np.float64(0.1), "0.1"),
    (np.float64(7.0), "7"),
    (decimal.Decimal("0.10"), "0.1"),
    (decimal.Decimal("3.00"), "3"),
    (decimal.Decimal("1E+3"), "1000"),
    (decimal.Decimal("12345678901234567890.5"), "12345678901234567890.5"),
    (datetime.date(2024, 1, 31), "2024-01-31"),
    (datetime.datetime(2024, 1, 31, 12, 30), "2024-01-31T12:30:00"),
    (datetime.time(7, 5), "07:05:00"),
    (np.datetime64("2024-01-31"), "2024-01-31"),
]
REFUSED: list[tuple[Any, str]] = [
    (None, "'answer' is null, not a text"),
    (float("nan"), "'answer' is NaN, not a text"),
    (np.float32("nan"), "'answer' is NaN, not a text"),
    (float("inf"), "'answer' is Infinity, not a text"),
    (float("-inf"), "'answer' is -Infinity, not a text"),
    (decimal.Decimal("NaN"), "'answer' is NaN, not a text"),
    (np.datetime64("NaT"), "'answer' is .*NaT.*, not a text"),
    (True, "'answer' is true, not a text; store the word"),
    (np.bool_(False), "'answer' is false, not a text; store the word"),
    (b"red", "'answer' is 3 bytes, not a text"),
    (["red"], r"'answer' is \[\"red\"\], a list, not a text"),
    ({"a": 1}, "'answer' is .*, a dict, not a text"),
    (np.zeros(2), "'answer' is .*, a ndarray, not a text"),
    (datetime.timedelta(1), "'answer' is .*, a timedelta, not a text"),
    (np.timedelta64(1, "D"), "'answer' is .*, a timedelta64, not a text"),
    (1j, "'answer' is 1j, a complex, not a text"),
    ("", "'answer' is empty"),
    (" \n", "'answer' is empty"),
    ("\u200b", "'answer' is empty"),
    ("\u00ad\u2060", "'answer' is empty"),
    ("\ud800", "'answer' holds half of a surrogate pair"),
]


@pytest.mark.parametrize(("value", "text"), TEXTS, ids=repr)
def test_a_value_becomes_text(value: Any, text: str) -> None:
    assert convert_to_text(value, "'answer'") == text


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=repr)
def test_what_is_no_text_is_refused_in_one_line(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        convert_to_text(value, "'answer'")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 120


@settings(max_examples=200, deadline=None)
@given(
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.sampled_from([np.float32, np.float64, float]),
)
def test_a_number_reads_back_as_the_same_number_of_its_type(value: float, kind: Callable[[Any], Any]) -> None:
    text = convert_to_text(kind(value), "x")
    assert kind(text) == kind(value)
    assert not text.endswith(".0") and not text.startswith("-0e") and text != "-0"


def hub(folder: Path, rows: list[dict[str, Any]], features: dict[str, Any], **options: Any) -> HubTask:
    """The rows as a data set of one split, with pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    pictured = [{"image": stored(i), **row} for i, row in enumerate(rows)]
    data = Dataset.from_list(pictured, features=Features({"image": Image(), **features}))
    path = folder / "rows.parquet"
    data.to_parquet(str(path))
    fields = {
        key: key for key in ("image", "question", "answer", "answers", "choices", "id", "system") if key in pictured[0]
    }
    given = {"fields": fields, "splits": {"test": "test"}, "path": {"test": str(path)}, **COMMON, **options}
    return HubTask(**given)


def jsonl(folder: Path, values: list[Any]) -> JsonlTask:
    rows = [{"id": i, "image": f"{i}.png", "question": "?", "answer": v} for i, v in enumerate(values)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlTask(path=str(folder / "data.jsonl"), **COMMON)


def llava(folder: Path, values: list[Any]) -> LlavaTask:
    items = [
        {
            "id": i,
            "image": f"{i}.png",
            "conversations": [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": v}],
        }
        for i, v in enumerate(values)
    ]
    (folder / "data.json").write_text(json.dumps(items))
    return LlavaTask(path=str(folder / "data.json"), **COMMON)


def table(folder: Path, values: list[str]) -> CsvTask:
    with open(folder / "data.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["image", "question", "answer"], *([f"{i}.png", "?", v] for i, v in enumerate(values))]
        )
    return CsvTask(path=str(folder / "data.csv"), **COMMON)


def of_type(kind: str) -> Callable[[Path, list[Any]], HubTask]:
    return lambda folder, values: hub(
        folder / kind,
        [{"question": "?", "answer": v} for v in values],
        {"question": Value("string"), "answer": Value(kind)},
    )


@pytest.mark.parametrize(
    ("values", "texts", "readers"),
    [
        (
            [" red", "red\n", "a b\nc ", "3.0"],
            ["red", "red", "a b\nc", "3.0"],
            [jsonl, llava, table, of_type("string"), of_type("large_string")],
        ),
        (
            [3.0, 0.1, 2.5, -1.0],
            ["3", "0.1", "2.5", "-1"],
            [jsonl, llava, of_type("float64"), of_type("float32"), of_type("float16")],
        ),
        ([3, -1, 127], ["3", "-1", "127"], [jsonl, llava, of_type("int8"), of_type("int64")]),
        ([2**60 + 1], ["1152921504606846977"], [jsonl, llava, of_type("int64")]),
        ([decimal.Decimal("1.50")], ["1.5"], [of_type("decimal128(10, 2)")]),
        ([datetime.date(2024, 1, 31)], ["2024-01-31"], [of_type("date32")]),
    ],
    ids=["text", "float", "int", "large", "decimal", "date"],
)
def test_every_reader_makes_the_same_text_of_a_value(
    values: list[Any], texts: list[str], readers: list[Callable[[Path, list[Any]], Any]], tmp_path: Path
) -> None:
    for i in range(len(values)):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    for read in readers:
        assert [sample.answers[0] for sample in read(tmp_path, values).validate_split("test")] == texts


def test_questions_and_choices_lose_their_outer_blanks_too(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    row = {
        "id": " a ",
        "image": "0.png",
        "question": "<image>\n Which? \n",
        "answer": "A",
        "choices": ["red ", "\tblue"],
    }
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    of_file = JsonlTask(path=str(tmp_path / "data.jsonl"), **COMMON).validate_split("test")[0]
    kinds = {
        "question": Value("string"),
        "answer": Value("string"),
        "choices": List(Value("string")),
        "id": Value("string"),
    }
    of_hub = hub(tmp_path, [{key: row[key] for key in kinds}], kinds).validate_split("test")[0]
    for sample in (of_file, of_hub):
        assert (sample.id, sample.question, sample.choices) == (
            "a",
            "Which?\nA. red\nB. blue",
            ("red", "blue"),
        )


ANIMALS = ["cat", "dog", "owl"]
QUESTION = {"question": Value("string")}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_class_label_is_taught_by_its_name(streaming: bool, tmp_path: Path) -> None:
    rows = [{"question": "?", "answer": i % 3} for i in range(6)]
    task = hub(
        tmp_path,
        rows,
        {**QUESTION, "answer": ClassLabel(names=ANIMALS)},
        streaming=streaming,
        meta=["answer"],
    )
    samples = task.validate_split("test")
    assert [sample.answers for sample in samples] == [(ANIMALS[i % 3],) for i in range(6)]
    assert samples[1].meta == {"answer": "dog"}


def test_class_labels_in_lists_and_of_saved_data_sets(tmp_path: Path) -> None:
    rows = [
        {"question": "?", "answers": [2, 0], "choices": [0, 1, 2]},
        {"question": "?", "answers": [1], "choices": [1, 0]},
    ]
    labels = List(ClassLabel(names=ANIMALS))
    task = hub(tmp_path, rows, {**QUESTION, "answers": labels, "choices": labels})
    first, second = task.validate_split("test")
    assert first.answers == ("owl", "cat") and second.answers == ("dog",)
    assert first.question == "?\nA. cat\nB. dog\nC. owl"
    data = Dataset.from_list(
        [{"image": stored(i), "question": "?", "answer": i % 3} for i in range(3)],
        features=Features({"image": Image(), **QUESTION, "answer": ClassLabel(names=ANIMALS)}),
    )
    data.save_to_disk(str(tmp_path / "saved"))
    fields = {"image": "image", "question": "question", "answer": "answer"}
    saved = HubTask(path=str(tmp_path / "saved"), fields=fields, splits={"test": "test"}, **COMMON)
    assert [sample.answers[0] for sample in saved.validate_split("test")] == ANIMALS


def test_other_names_of_the_labels_are_another_fingerprint(tmp_path: Path) -> None:
    rows = [{"question": "?", "answer": i} for i in range(3)]

    def fingerprint(names: list[str]) -> str:
        data = Dataset.from_list(
            [{"image": stored(i), **row} for i, row in enumerate(rows)],
            features=Features({"image": Image(), **QUESTION, "answer": ClassLabel(names=names)}),
        )
        folder = tmp_path / names[0]
        data.save_to_disk(str(folder))
        fields = {"image": "image", "question": "question", "answer": "answer"}
        return HubTask(path=str(folder), fields=fields, splits={"test": "test"}, **COMMON).fingerprint_split("test")

    assert fingerprint(ANIMALS) != fingerprint(["lynx", "dog", "owl"])


def test_a_missing_label_and_one_without_a_name_are_bad_samples(tmp_path: Path) -> None:
    rows = [{"question": "?", "answer": value} for value in (0, -1, None, 1)]
    task = hub(tmp_path, rows, {**QUESTION, "answer": ClassLabel(names=ANIMALS)})
    with pytest.raises(
        DataError,
        match=r"2 of 4 test samples cannot be used \(first: test-1: 'answer' is null, not a text; then test-2\)",
    ):
        task.validate_split("test")
    assert [sample.answers[0] for sample in task.validate_split("test", "skip")] == ["cat", "dog"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("wanted", ["dog", 1])
def test_where_takes_a_label_by_name_or_by_number(streaming: bool, wanted: Any, tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": "x", "kind": i % 3} for i in range(6)]
    kinds = {**QUESTION, "answer": Value("string"), "kind": ClassLabel(names=ANIMALS)}
    task = hub(tmp_path, rows, kinds, where={"kind": wanted}, streaming=streaming)
    assert [sample.question for sample in task.validate_split("test")] == ["1?", "4?"]


def test_groups_of_a_part_are_named_by_the_same_rules(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": "x", "weight": 0.5 + i % 2} for i in range(20)]
    kinds = {**QUESTION, "answer": Value("string"), "weight": Value("float32")}
    part = SubsetTask(hub(tmp_path, rows, kinds, meta=["weight"]), samples=6, by="weight").validate_split("test")
    assert sorted(float(sample.meta["weight"]) for sample in part) == [0.5] * 3 + [1.5] * 3


def test_fields_that_nothing_reads_are_refused(tmp_path: Path) -> None:
    for fields, message in (
        ({"question": "q", "images": "pics"}, "fields has 'images'; it maps question, answer,"),
        ({"question": "q", "answer": "a", "answers": "b"}, "fields has both 'answer' and 'answers'"),
    ):
        with pytest.raises(ConfigError, match=message):
            HubTask(fields=fields, splits={"test": "test"}, **COMMON)
    with pytest.raises(ConfigError, match="fields has 'questoin'; it maps id, image"):
        CsvTask(path="x.csv", fields={"questoin": "prompt"}, **COMMON)


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
def test_a_copy_with_other_rows_under_the_same_name_and_time_is_read_anew(as_folder: bool, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "test-00000-of-00001.parquet"
    kinds = Features({"question": Value("string"), "answer": Value("string")})

    def answers(answer: str) -> list[str]:
        Dataset.from_list([{"question": "?", "answer": answer}], features=kinds).to_parquet(str(path))
        os.utime(path, (1_700_000_000, 1_700_000_000))
        where: Any = str(tmp_path / "data") if as_folder else {"test": str(path)}
        fields = {"question": "question", "answer": "answer"}
        task = HubTask(path=where, fields=fields, splits={"test": "test"}, **COMMON)
        return [sample.answers[0] for sample in task.validate_split("test")]

    assert [answers("red"), answers("sky"), answers("red")] == [["red"], ["sky"], ["red"]]
