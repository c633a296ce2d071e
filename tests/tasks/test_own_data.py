"""Data that users bring beside JSONL: LLaVA-style JSON, a CSV with pictures, one file for both roles."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lmm_forget.config import compose_config, resolve_config
from lmm_forget.errors import ConfigError, DataError
from lmm_forget.experiment import pipeline
from lmm_forget.progress import NullProgress
from lmm_forget.tasks.csv_table import CsvTask
from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.llava import LlavaTask
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from tests.tasks.published import png

COMMON: dict[str, Any] = {"name": "mine", "role": "held_out", "scorer": ExactMatchScorer(), "max_new_tokens": 4}


def pictures(folder: Path, n: int = 40) -> Path:
    (folder / "pics").mkdir(parents=True)
    for i in range(n):
        (folder / "pics" / f"{i}.png").write_bytes(png(i))
    return folder


def turn(human: str, gpt: Any) -> list[dict[str, Any]]:
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


def llava(folder: Path, *items: Any, **options: Any) -> LlavaTask:
    (folder / "data.json").write_text(json.dumps(list(items)))
    return LlavaTask(path=str(folder / "data.json"), **{**COMMON, **options})


ONE = {"id": "a", "image": "pics/1.png", "conversations": turn("<image>\nWhat is it?", "a cat")}


def test_llava_json_is_read(tmp_path: Path) -> None:
    pictures(tmp_path)
    two = {
        "id": 7,
        "image": ["pics/1.png", "pics/2.png"],
        "conversations": [{"from": "system", "value": "Be kind."}, *turn("Compare.\n<image>\n<image>", 2)],
    }
    samples = llava(tmp_path, ONE, two, {"id": "text", "conversations": turn("Hello?", "Hi")}).validate_split("test")
    first, second, third = samples
    assert (first.id, first.question, first.answers) == ("a", "What is it?", ("a cat",))
    assert (second.id, second.question, second.answers, len(second.images)) == ("7", "Compare.", ("2",), 2)
    assert first.image_id == second.image_id, "they share a picture"
    assert third.images == () and third.question == "Hello?"


def test_llava_turns_and_keep(tmp_path: Path) -> None:
    pictures(tmp_path)
    several = {**ONE, "conversations": [*turn("<image>\nWhat?", "a cat"), *turn("Which color?", "red")]}
    with pytest.raises(DataError, match=r"item 0 \(id a\): 2 exchanges; turns=first keeps one, turns=each makes"):
        llava(tmp_path, several).validate_split("test")
    assert [s.question for s in llava(tmp_path, several, turns="first").validate_split("test")] == ["What?"]
    each = llava(tmp_path, several, turns="each").validate_split("test")
    assert [(s.id, s.question, s.answers) for s in each] == [
        ("a#0", "What?", ("a cat",)),
        ("a#1", "Which color?", ("red",)),
    ]
    with pytest.raises(ConfigError, match="turns=all is not known; choose one of: one, first, each"):
        llava(tmp_path, several, turns="all")
    many = [{**ONE, "id": str(i)} for i in range(30)]
    kept = llava(tmp_path, *many, keep=10).validate_split("test")
    more = llava(tmp_path, *many, keep=20).validate_split("test")
    assert len(kept) == 10 and {s.id for s in kept} < {s.id for s in more}


BAD_LLAVA: list[tuple[Any, str]] = [
    (
        {**ONE, "conversations": turn("<image><image>\nWhat?", "x")},
        r"item 1 \(id a\): 2 <image> marks and 1 image; each image needs one",
    ),
    ({**ONE, "conversations": turn("What?", "x")}, r"item 1 \(id a\): 0 <image> marks and 1 image;"),
    ({**ONE, "conversations": turn("<image>", "x")}, r"item 1 \(id a\): 'human turn' is empty"),
    ({**ONE, "conversations": turn("<image>\nWhat?", None)}, r"\(id a\): 'gpt turn' is null, not a text"),
    (
        {**ONE, "conversations": turn("<image>\nWhat?", "x")[:1]},
        r"\(id a\): 1 turns; questions and answers must",
    ),
    (
        {**ONE, "conversations": turn("<image>\nWhat?", "x")[::-1]},
        r"turns from 'gpt' and 'human', not human and",
    ),
    ({"id": "a", "image": "pics/1.png"}, r"\(id a\): no 'conversations' list; it has 'id', 'image'"),
    ({**ONE, "split": "dev"}, r"\(id a\): split 'dev' is not one of train, validation, test"),
    ("text", r"item 1 \(id 1\): a str, not an object"),
    ({**ONE, "id": "first"}, r"item 1 \(id first\): id 'first' is used already, at .*item 0"),
]


@pytest.mark.parametrize(("item", "message"), BAD_LLAVA)
def test_llava_mistakes_are_named_with_the_items_id(tmp_path: Path, item: Any, message: str) -> None:
    pictures(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        llava(tmp_path, {**ONE, "id": "first"}, item).validate_split("test")
    assert "\n" not in str(caught.value)


def test_llava_files_that_are_none(tmp_path: Path) -> None:
    for content, message in (
        (b'[{"id": "\xe9"}]', r"data.json: not UTF-8 text \(byte 9\)"),
        (b'{"id": 1}\n{"id": 2}', r"data.json: not valid JSON .*one object per line is .jsonl"),
        (b'{"id": 1}', r"data.json: not a list; it must list conversations"),
        (b"[]", r"data.json: an empty list"),
    ):
        (tmp_path / "data.json").write_bytes(content)
        with pytest.raises(DataError, match=message):
            LlavaTask(path=str(tmp_path / "data.json"), **COMMON).validate_split("test")


def table(folder: Path, header: list[str], *lines: list[str], name: str = "data.csv", **options: Any) -> CsvTask:
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",").writerows([header, *lines])
    return CsvTask(path=str(folder / name), **{**COMMON, **options})


def test_a_csv_with_a_folder_of_pictures(tmp_path: Path) -> None:
    pictures(tmp_path)
    header = ["file", "prompt", "answers", "choices", "source"]
    lines = [
        ["1.png", 'Which, "really"?', "B", "red|blue", "web"],
        ["2.png", "Line\nbreak?", "yes|yeah", "", ""],
    ]
    fields = {"image": "file", "question": "prompt"}
    made = table(tmp_path, header, *lines, fields=fields, images_root=str(tmp_path / "pics"))
    first, second = made.load_samples("test")
    assert first.question == 'Which, "really"?\nA. red\nB. blue' and first.choices == ("red", "blue")
    assert first.meta == {"source": "web"} and first.id == "2" and first.images[0].size == (20, 12)
    assert second.answers == ("yes", "yeah") and second.question == "Line\nbreak?"
    tabs = table(tmp_path, ["image", "question", "answer"], ["pics/3.png", "What, then?", "x"], name="data.tsv")
    assert tabs.validate_split("test")[0].question == "What, then?"


def test_csv_mistakes(tmp_path: Path) -> None:
    pictures(tmp_path)
    header = ["image", "question", "answer"]
    for head, line, options, message in (
        (header, ["pics/1.png", "What?"], {}, r"data.csv:2: 2 cells under 3 columns"),
        (
            header,
            ["pics/1.png", "What?", ""],
            {},
            r"data.csv:2 \(id 2\): no 'answer' or 'answers'; the line has",
        ),
        (["image", "image", "answer"], ["a", "b", "c"], {}, r"has an empty or a double name"),
        (
            header,
            ["pics/1.png", "What?", "x"],
            {"fields": {"question": "q"}},
            r"data.csv:2: no column 'q' for que",
        ),
        (header, ["pics/99.png", "What?", "x"], {}, r"1 of 1 samples .*2: image \S*99.png is missing"),
    ):
        with pytest.raises(DataError, match=message):
            table(tmp_path, head, line, **options).validate_split("test")
    (tmp_path / "data.csv").write_bytes(b"image,question,answer\npics/1.png,caf\xe9?,x\n")
    with pytest.raises(DataError, match=r"data.csv:2: not UTF-8 text"):
        CsvTask(path=str(tmp_path / "data.csv"), **COMMON).validate_split("test")
    (tmp_path / "data.csv").write_text("image,question,answer\n")
    with pytest.raises(DataError, match=r"data.csv has no rows below its header"):
        CsvTask(path=str(tmp_path / "data.csv"), **COMMON).validate_split("test")


def test_one_file_is_taught_and_held_out_without_a_shared_picture(tmp_path: Path) -> None:
    pictures(tmp_path)
    rows = [
        {"id": i, "image": f"pics/{i // 3}.png", "question": "?", "answer": "x"} for i in range(120)
    ]  # three questions about every picture
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both: dict[str, Any] = {**COMMON, "path": str(tmp_path / "data.jsonl"), "held_out_fraction": 0.3}
    taught, held = JsonlTask(**{**both, "role": "target"}), JsonlTask(**both)
    seen = {sample.image_id for split in ("train", "validation", "test") for sample in taught.validate_split(split)}
    asked = {sample.image_id for sample in held.validate_split("test")}
    assert seen and asked and not seen & asked and len(seen | asked) == 40
    assert (
        sum(len(taught.load_samples(s)) for s in ("train", "validation", "test")) + len(held.load_samples("test"))
        == 120
    )
    with pytest.raises(DataError, match="no train samples"):
        held.load_samples("train")
    with pytest.raises(ConfigError, match="held_out_fraction 1.0 must be from 0 to below 1"):
        JsonlTask(**{**both, "held_out_fraction": 1.0})


def test_what_is_left_out_and_what_cannot_be_said_are_in_the_record(tmp_path: Path) -> None:
    """One picture gone, one sample beyond the context, answers longer than max_new_tokens: said before training."""
    pictures(tmp_path, 12)
    rows = [["id", "image", "question", "answer", "split"]]
    rows += [[f"{i}", f"pics/{i}.png", "What is it?", "blue", "train" if i < 8 else "test"] for i in range(12)]
    rows[2][1], rows[3][2], rows[4][3], rows[10][3] = "pics/gone.png", "red " * 900, "blue " * 9, "red " * 9
    with open(tmp_path / "mine.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "mine.yaml").write_text(
        f"# Mine.\n_target_: lmm_forget.tasks.csv_table.CsvTask\nname: mine\nrole: target\n"
        f"path: {tmp_path / 'mine.csv'}\nmax_new_tokens: 4\n"
        "scorer: {_target_: lmm_forget.tasks.scoring.exact.ExactMatchScorer}\n"
    )
    overrides = [
        "experiment=smoke",
        "sequence=single",
        "sequence.task=mine",
        "suite.tasks=[ai2d]",
        "data.train_samples=null",
    ]
    overrides += [
        "training.max_steps=1",
        "training.global_batch_size=4",
        "hardware.micro_batch_size=4",
        "recipe=projector",
    ]
    overrides += ["data.eval_samples=null", f"store={tmp_path / 'store'}"]

    def run(*more: str) -> dict[str, Any]:
        config = resolve_config(compose_config([*overrides, *more], str(tmp_path / "conf")))
        return pipeline.run_experiment(config, tmp_path, NullProgress())

    with pytest.raises(DataError, match=r"1 of 12 samples cannot be used \(first: 1: image \S*gone.png is missing\)"):
        run()
    (tmp_path / "pics" / "gone.png").write_bytes(png(1))
    with pytest.raises(
        DataError,
        match=r"task mine: 1 of 8 samples cannot be trained \(first: 2: prompt and answer have \d+ tokens, the model's "
        r"context is \d+; [^\n]*; data.on_bad_sample=skip leaves them out",
    ):
        run()
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").rglob("*.safetensors"))
    (tmp_path / "pics" / "gone.png").unlink()
    results = run("data.on_bad_sample=skip")
    data = results["data"]["mine"]
    assert (data["trained"]["samples"], data["trained"]["skipped"], data["trained"]["long_answers"]) == (6, 2, 1)
    assert (data["evaluated"]["samples"], data["evaluated"]["skipped"], data["evaluated"]["long_answers"]) == (4, 0, 1)
    left_out, long_taught, long_asked = results["job"]["warnings"]
    assert left_out.startswith("task mine: 2 samples are left out and not trained (first: 1: image ")
    assert re.search(
        r"1 of 6 answers that are trained on are longer than max_new_tokens=4.*\(first: 3, \d+ tok", long_taught
    )
    assert re.search(r"1 of 4 answers asked for are longer than max_new_tokens=4.*\(first: 9, \d+ tokens\)", long_asked)
