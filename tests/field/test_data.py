"""Files that people bring: what is read from them is what stands in them, on every machine."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lmm_forget.errors import DataError
from lmm_forget.tasks.csv_table import CsvTask
from lmm_forget.tasks.hub import HubTask
from lmm_forget.tasks.images import read_image
from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.llava import LlavaTask
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from lmm_forget.tasks.task import Task
from tests.field.inputs import COLOURS, squares, write_rows

COMMON: dict[str, Any] = {"name": "mine", "role": "held_out", "scorer": ExactMatchScorer(), "max_new_tokens": 4}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps its copies in the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def hub(path: Path, **more: Any) -> HubTask:
    fields = {"question": "question", "answer": "answer", "image": "image", **more.pop("fields", {})}
    return HubTask(path=str(path), splits={"test": "test"}, fields=fields, **{**COMMON, **more})


def picture_bytes(folder: Path, colour: str = "red") -> bytes:
    path = folder / f"{colour}.png"
    Image.new("RGB", (8, 8), COLOURS[colour]).save(path)
    return path.read_bytes()


def test_no_picture_is_taught_and_tested_under_another_name(tmp_path: Path) -> None:
    """MedTrinity-25M 26: all pictures of a test set stood in its training set, saved once more; scores were too high.

    Right: pictures are the same when their pixels are; all questions about one are in one split.
    """
    (tmp_path / "img").mkdir()
    rows = []
    for i in range(80):
        level = i // 4  # four questions about each picture, each with a file of its own
        Image.new("RGB", (16, 16), (level * 10, 255 - level * 10, level)).save(tmp_path / f"img/{i}.png")
        rows.append({"id": f"q{i}", "image": f"img/{i}.png", "question": f"What {i}?", "answer": "red"})
    task = JsonlTask(path=str(write_rows(tmp_path / "data.jsonl", rows)), **{**COMMON, "role": "target"})
    seen: dict[bytes, set[str]] = {}
    for split in ("train", "validation", "test"):
        for sample in task.load_samples(split):
            seen.setdefault(sample.images[0].tobytes(), set()).add(split)
    assert len(seen) == 20 and all(len(splits) == 1 for splits in seen.values())
    clusters = {sample.image_id for split in ("train", "validation", "test") for sample in task.load_samples(split)}
    assert len(clusters) == 20, "and they are one cluster of the intervals"


def test_numbers_are_written_the_same_by_every_reader(tmp_path: Path) -> None:
    """ms-swift 10216 and datasets PR 8652: 0.7 in a file was taught as "0.7000000000000001"; float32 makes more of it.

    Right: the shortest text that reads back; whole numbers without a point; class labels by their names.
    """
    image = {"bytes": picture_bytes(tmp_path), "path": None}
    rows = [{"id": str(i), "images": [], "question": "?", "answer": value} for i, value in enumerate((0.1, 3.0, 3))]
    lines = JsonlTask(path=str(write_rows(tmp_path / "data.jsonl", rows)), **COMMON)
    assert [sample.answers[0] for sample in lines.load_samples("test")] == ["0.1", "3", "3"]
    for kind in (pa.float32(), pa.float64()):
        table = {"question": ["?"] * 2, "answer": pa.array([0.1, 3.0], kind), "image": [image] * 2}
        pq.write_table(pa.table(table), tmp_path / f"{kind}.parquet")
        read = hub(tmp_path / f"{kind}.parquet").load_samples("test")
        assert [sample.answers[0] for sample in read] == ["0.1", "3"], str(kind)


def test_a_class_label_is_taught_by_its_name(tmp_path: Path) -> None:
    """datasets 2207: a column of class labels gives numbers, which stand for nothing without the list of names.

    Right: a column of class labels is read as the classes' names.
    """
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as Pictures

    features = Features({"question": Value("string"), "answer": ClassLabel(names=["cat", "dog"]), "image": Pictures()})
    columns = {
        "question": ["Which?"] * 2,
        "answer": [1, 0],
        "image": [{"bytes": picture_bytes(tmp_path), "path": None}] * 2,
    }
    Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
    read = hub(tmp_path / "saved").load_samples("test")
    assert [sample.answers[0] for sample in read] == ["dog", "cat"]


def test_words_that_spreadsheets_take_for_nothing(tmp_path: Path) -> None:
    """VLMEvalKit 1559: the option "None" was read as NaN, and the right answer was never shown to the model.

    Right: a cell is the text that stands in it, "None", "NA", "nan", "007", "1e5" and "TRUE" included.
    """
    words = ["None", "NA", "nan", "null", "007", "1e5", "TRUE", "1.50"]
    with open(tmp_path / "data.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer", "choices"])
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        writer.writerows([["a.png", "How many?", word, "|".join(words)] for word in words])
    for sample, word in zip(
        CsvTask(path=str(tmp_path / "data.csv"), **COMMON).load_samples("test"), words, strict=True
    ):
        assert sample.answers == (word,) and sample.choices == tuple(words)
        assert "A. None" in sample.question and "H. 1.50" in sample.question


def test_the_order_of_files_is_not_the_file_system_s(tmp_path: Path) -> None:
    """datasets 3857: files came in the order of glob, which is another one on another file system.

    Right: shards are read in the order of their names, whichever was written first.
    """
    found = []
    for seed in (1, 2):
        folder = tmp_path / f"copy{seed}"
        folder.mkdir()
        numbers = list(range(12))
        random.Random(seed).shuffle(numbers)
        for i in numbers:
            image = {"bytes": picture_bytes(tmp_path), "path": None}
            table = pa.table({"question": [f"What {i}?"], "answer": [f"a{i}"], "image": [image]})
            pq.write_table(table, folder / f"test-{i:05d}-of-00012.parquet")
        task = hub(folder)
        found.append(([sample.answers[0] for sample in task.load_samples("test")], task.fingerprint_split("test")))
    assert found[0] == found[1]
    assert found[0][0] == [f"a{i}" for i in range(12)]


def test_pictures_as_people_see_them(tmp_path: Path) -> None:
    """sglang 33464 and mistral-common 330: photos with an EXIF orientation reached the model lying on their side.

    Right: upright; 16-bit greys scaled, not clipped to white; what is transparent on white; palettes and CMYK as RGB.
    """
    photo = Image.new("RGB", (40, 20), "red")
    photo.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    photo.save(tmp_path / "photo.png", exif=exif)
    upright = read_image(tmp_path / "photo.png")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (0, 0, 255) and upright.getpixel((10, 35)) == (255, 0, 0)
    Image.fromarray(np.full((8, 8), 32896, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "glass.png")
    assert read_image(tmp_path / "glass.png").getpixel((0, 0)) == (255, 255, 255)
    for mode, name in (("P", "palette.gif"), ("CMYK", "print.jpg"), ("1", "bits.tiff"), ("L", "grey.webp")):
        Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / name)
        assert read_image(tmp_path / name).mode == "RGB"
        assert min(read_image(tmp_path / name).getpixel((3, 3))) > 250  # type: ignore[type-var]


def readers(folder: Path, ids: list[str], answers: list[str]) -> dict[str, Task]:
    """The same questions, with these ids and answers, for each reader."""
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    stored = {"bytes": (folder / "a.png").read_bytes(), "path": None}
    pairs = list(zip(ids, answers, strict=True))
    write_rows(
        folder / "data.jsonl",
        [{"id": i, "image": "a.png", "question": "What?", "answer": a} for i, a in pairs],
    )
    turns = [
        {
            "id": i,
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": a}],
        }
        for i, a in pairs
    ]
    (folder / "data.json").write_text(json.dumps(turns))
    with open(folder / "data.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["id", "image", "question", "answer"], *([i, "a.png", "What?", a] for i, a in pairs)]
        )
    table = {"id": ids, "question": ["What?"] * len(ids), "answer": answers, "image": [stored] * len(ids)}
    pq.write_table(pa.table(table), folder / "data.parquet")
    return {
        "jsonl": JsonlTask(path=str(folder / "data.jsonl"), **COMMON),
        "llava": LlavaTask(path=str(folder / "data.json"), **COMMON),
        "csv": CsvTask(path=str(folder / "data.csv"), **COMMON),
        "hub": hub(folder / "data.parquet", fields={"id": "id"}),
    }


@pytest.mark.parametrize("reader", ["jsonl", "llava", "csv", "hub"])
def test_an_id_that_is_used_twice(tmp_path: Path, reader: str) -> None:
    """VLMEvalKit 696: several questions had one index, and all of them got the last one's answer.

    Right: an id that is used twice is refused, or left out where bad samples are to be.
    """
    task = readers(tmp_path, ["a", "b", "a", "c"], ["red"] * 4)[reader]
    with pytest.raises(DataError, match=r"\ba\b.*(used already|again)") as caught:
        task.validate_split("test")
    assert "\n" not in str(caught.value)
    usable = readers(tmp_path, ["a", "b", "a", "c"], ["red"] * 4)[reader].validate_split("test", "skip")
    assert [sample.id for sample in usable] == ["a", "b", "c"]


@pytest.mark.parametrize("reader", ["jsonl", "llava", "csv", "hub"])
def test_blanks_around_an_answer(tmp_path: Path, reader: str) -> None:
    """trl 1920: one blank more in a text made other tokens, and the text was not recognised any more.

    Right: an answer is taught and compared without the blanks and line breaks around it, by every reader.
    """
    task = readers(tmp_path, ["a", "b", "c"], [" red", "red\n", "red"])[reader]
    assert [sample.answers for sample in task.load_samples("test")] == [("red",)] * 3
    assert {task.get_target_answer(sample) for sample in task.load_samples("test")} == {"red"}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_from_other_systems(tmp_path: Path, ending: str, mark: str) -> None:
    """LlamaFactory 2877 and mlx-examples PR 1340: files were read in the machine's encoding, and crashed elsewhere.

    Right: UTF-8 whatever the locale, with or without a byte order mark, with either line end.
    """
    path = squares(tmp_path, 4, answers=["größe", "красный", "红", "e\u0301"])
    plain = JsonlTask(path=str(path), **COMMON)
    expected = [sample.answers for sample in plain.load_samples("test")]
    text = mark + path.read_text(encoding="utf-8").replace("\n", ending)
    path.write_bytes(text.encode("utf-8"))
    assert [sample.answers for sample in JsonlTask(path=str(path), **COMMON).load_samples("test")] == expected
    path.write_bytes(text.encode("utf-8").replace("größe".encode(), "größe".encode("latin-1")))
    with pytest.raises(DataError, match=r"data.jsonl:1: not UTF-8 text"):
        JsonlTask(path=str(path), **COMMON).load_samples("test")
