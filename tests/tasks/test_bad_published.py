"""What is said about published data that cannot be used: one line, with the sample's id, never a stack trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.tasks.hub import HubTask
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from lmm_forget.tasks.task import Task
from tests.tasks import published

Made = Callable[..., Task]


def parquet(name: str, folder: Path, change: Callable[[list[dict[str, Any]]], Any]) -> str:
    """A copy of a data set with rows changed."""
    rows = published.rows(name, 8)
    change(rows)
    Dataset.from_list(rows, features=Features(published.SCHEMAS[name][0])).to_parquet(str(folder / "rows.parquet"))
    return str(folder / "rows.parquet")


def put(number: int, column: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[number][column] = value

    return change


BROKEN = {"bytes": published.png(5)[:40], "path": "5.png"}
ROWS: list[tuple[str, Callable[[list[dict[str, Any]]], Any], str]] = [
    ("ai2d", put(5, "image", BROKEN), r"test-5: image cannot be read \(.*\)"),
    ("ai2d", put(5, "image", {"bytes": b"", "path": None}), r"test-5: image cannot be read \(empty file\)"),
    ("ai2d", put(5, "image", {"bytes": b"GIF, no", "path": None}), r"test-5: image .*\(not an image file\)"),
    ("ai2d", put(5, "image", None), r"test-5: 'image' is null, not an image"),
    ("seedbench", put(5, "image", [published.stored(5), BROKEN]), r"5: image cannot be read .* number 1"),
    ("ai2d", put(2, "answer", None), r"test-2: 'answer' is null, not a text"),
    ("ai2d", put(2, "answer", "7"), r"test-2: answer '7' is neither a letter nor a position among 4 options"),
    ("ai2d", put(2, "options", []), r"test-2: 'choices' \(column options\) is an empty list"),
    ("ai2d", put(2, "options", ["a", None]), r"test-2: 'choices' \(column options\) is null, not a text"),
    ("docvqa", put(3, "answers", []), r"3: 'answers' is an empty list"),
    ("docvqa", put(3, "answers", [" "]), r"3: 'answers' is empty"),
    ("docvqa", put(3, "questionId", "2"), r"2: the id of row 2 again \(row 3\)"),
    ("chartqa", put(4, "question", "  "), r"test-4: 'question' is empty"),
    ("timeclock", put(4, "question", "<image>"), r"test-4: 'question' is empty but for its image mark"),
    (
        "pixmocount",
        put(1, "answer", "many dogs"),
        r"test-1: 'answer' is 'many dogs', which does not begin with a",
    ),
    ("mmstar", put(1, "answer", "two"), r"1: .*'two'"),
    ("countbench", put(1, "number", None), r"test-1: 'answer' \(column number\) is null, not a text"),
]


@pytest.mark.parametrize(("name", "change", "message"), ROWS)
def test_one_bad_row_in_the_middle(
    name: str, change: Callable[..., Any], message: str, tmp_path: Path, made: Made
) -> None:
    path = parquet(name, tmp_path, change)
    task = made(name, path={"test": path}, streaming=False)
    with pytest.raises(DataError, match=rf"1 of \d test samples cannot be used \(first: {message}") as caught:
        task.validate_split("test")
    assert "\n" not in str(caught.value)
    usable = task.validate_split("test", "skip")
    assert len(usable) == len(task.load_samples("test")) - 1
    assert len(usable.skipped) == 1 and [sample.id for sample in usable]  # type: ignore[attr-defined]


def test_a_bad_row_of_a_stream_is_named_when_it_is_read(tmp_path: Path, made: Made) -> None:
    task = made("ai2d", path={"test": parquet("ai2d", tmp_path, put(5, "image", BROKEN))}, streaming=True)
    samples = task.load_samples("test")
    assert samples[4].id == "test-4"
    with pytest.raises(DataError, match="sample test-5: image cannot be read"):
        samples[5]
    assert samples[6].id == "test-6", "the stream goes on"


def test_text_that_is_not_utf8(tmp_path: Path, made: Made) -> None:
    path = parquet("chartqa", tmp_path, lambda rows: None)
    table = pq.read_table(path)
    raw = [b"how \xff much?" if i == 3 else text.encode() for i, text in enumerate(table["question"].to_pylist())]
    bad = pa.array(raw, pa.binary()).view(pa.utf8())
    table = table.set_column(table.column_names.index("question"), "question", bad)
    pq.write_table(table, path)
    with pytest.raises(DataError, match=r"1 of 8 test samples .*test-3: 'question' is not UTF-8 text"):
        made("chartqa", path={"test": path}).validate_split("test")
    assert len(made("chartqa", path={"test": path}).validate_split("test", "skip")) == 7


def test_a_changed_schema_names_what_is_missing_and_what_is_there(tmp_path: Path, made: Made) -> None:
    path = str(tmp_path / "rows.parquet")
    published.table("ai2d", 4).rename_column("options", "choices").to_parquet(path)
    with pytest.raises(DataError, match=r"no column 'options'; it has question, choices, answer, image \(a renamed"):
        made("ai2d", path={"test": path}).validate_split("test")
    fields = {"question": "question", "choices": "choices", "answer": "answer", "image": "image"}
    assert len(made("ai2d", path={"test": path}, fields=fields).validate_split("test")) == 4
    with pytest.raises(ConfigError, match=r"fields gives no column for 'choices'; it has question"):
        made("ai2d", path={"test": path}, fields={"question": "question", "answer": "answer"})
    with pytest.raises(DataError, match=r"no column is given for 'answer'; the task's fields has question, image"):
        node = {"question": "question", "image": "image"}
        made("chartqa", path={"test": path}, fields=node, meta=[]).validate_split("test")


def test_sources_that_are_not_there_or_empty(tmp_path: Path, made: Made) -> None:
    empty = str(tmp_path / "empty.parquet")
    published.table("ai2d", 4).select([]).to_parquet(empty)
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing else")
    (tmp_path / "void").mkdir()
    repo = published.write("ai2d", tmp_path / "repo")
    for path, message in (
        (empty, r"empty.parquet \(test\) is empty"),
        (str(tmp_path / "no.parquet"), r"no.parquet is missing"),
        (str(tmp_path / "text.txt"), r"is not a .parquet or .arrow file, nor a folder"),
        (str(tmp_path / "bad.parquet"), r"bad.parquet \(test\) cannot be read: .*[Pp]arquet"),
        (str(tmp_path / "void"), r"void holds no parquet or arrow files"),
    ):
        for streaming in (False, True):
            with pytest.raises(DataError, match=message) as caught:
                made("ai2d", path={"test": path}, streaming=streaming).validate_split("test")
            assert "\n" not in str(caught.value) and str(caught.value).startswith("task ai2d: ")
    with pytest.raises(DataError, match=r"has no split 'dev'; it has test"):
        made("pathvqa", path=str(repo), splits={"test": "dev", "train": "test"}).validate_split("test")
    with pytest.raises(DataError, match=r"no train samples; it has test; it is not trained"):
        made("ai2d", path=str(repo)).validate_split("train")
    seed = str(published.write("seedbench", tmp_path / "seed"))
    with pytest.raises(DataError, match=r"seed \(test\) has no rows where {'data_type': 'sound'}"):
        made("seedbench", path=seed, where={"data_type": "sound"}).validate_split("test")


def test_wrong_fields_of_a_yaml(made: Made) -> None:
    for changes, message in (
        ({"splits": {"dev": "test"}}, "splits has dev; it maps train, validation, test"),
        ({"train_prompt": "full"}, "train_prompt=full is not known; choose one of: bare, as_evaluated"),
        ({"validation_fraction": 1.5}, "validation_fraction 1.5 must be from 0 to below 1"),
        ({"hubb": "x"}, "unexpected keyword argument 'hubb'"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            made("ai2d", **changes)


def test_a_hub_data_set_of_ones_own_needs_only_its_columns(tmp_path: Path) -> None:
    """The field mapping of a YAML is enough for data that nobody wrote a class for."""
    rows = [{"q": f"How many {i}?", "a": float(i), "pic": published.png(i), "kind": "x"} for i in range(30)]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "mine"))
    task = HubTask(
        name="mine",
        role="target",
        path=str(tmp_path / "mine"),
        splits={"train": "train", "test": "train"},
        fields={"question": "q", "answer": "a", "image": "pic"},
        meta=["kind"],
        validation_fraction=0.3,
        scorer=ExactMatchScorer(),
        max_new_tokens=4,
    )
    sample = task.validate_split("test")[7]
    assert sample.answers == ("7",) and sample.images[0].size == (20, 12) and sample.meta == {"kind": "x"}
    assert len(task.validate_split("train")) + len(task.validate_split("validation")) == 30
