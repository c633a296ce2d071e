"""`data check`, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lmm_forget.cli.data import main
from lmm_forget.data.inspection import compute_difference_hash, detect_answer_format
from tests.tasks import published
from tests.tasks.published import png


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["check", *arguments, "format=json"])
    shown = capsys.readouterr()
    return code, json.loads(shown.out) if code != 2 else shown.err


def test_a_published_task_is_read_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repo = published.write("pathvqa", tmp_path / "repo", 9)
    sheet = tmp_path / "sheets" / "pathvqa.png"
    code, report = checked(capsys, "task=pathvqa", f"task.path={repo}", f"sheet={sheet}")
    assert code == 0 and report["problems"] == 0 and report["source"]["test"] == "local copy"
    test = report["splits"]["test"]
    assert (test["samples"], test["images"], test["unusable"]["count"]) == (9, 9, 0)
    assert test["answers"]["formats"] == {"one word": 5, "yes/no": 4}
    assert test["answers"]["most_common"] == [["cardiovascular", 5], ["yes", 4]]
    assert test["pixels"] == {
        "width": {"min": 20, "median": 20, "max": 20},
        "height": {"min": 12, "median": 12, "max": 12},
    }
    with Image.open(sheet) as picture:
        assert picture.format == "PNG" and picture.width > 1000
        assert len(picture.getcolors(1 << 20) or []) > 25, "the samples' colors and their text are on it"


def test_a_training_folder_that_is_not_finished_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = published.write("pixmocount", tmp_path / "repo")
    (tmp_path / "half" / "images").mkdir(parents=True)
    arguments = ["task=pixmocount", f"task.path={repo}", "sheet=none"]
    assert checked(capsys, *arguments)[0] == 0, "none was given: there is only nothing to teach"
    code, report = checked(capsys, *arguments, f"task.train_path={tmp_path / 'half'}")
    assert code == 1 and report["problems"] == 1 and "was not prepared" in report["absent"]["train"]


def test_problems_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "conf" / "task"
    folder.mkdir(parents=True)
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    (tmp_path / "4.png").write_bytes(b"no picture")
    (tmp_path / "copy.png").write_bytes(png(0))
    scene = Image.linear_gradient("L").rotate(30).resize((60, 48)).convert("RGB")
    scene.save(tmp_path / "scene.png")
    scene.resize((200, 160)).save(tmp_path / "large.jpg", quality=90)
    lines = [{"id": f"{i}", "image": f"{i}.png", "question": "?", "answer": "3", "split": "train"} for i in range(6)]
    lines += [
        {"id": "s", "image": "scene.png", "question": "?", "answer": "3", "split": "train"},
        {"id": "same", "image": "copy.png", "question": "?", "answer": "B.", "split": "test"},
        {"id": "near", "image": "large.jpg", "question": "?", "answer": "03:45", "split": "test"},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    node = {
        "_target_": "lmm_forget.tasks.jsonl.JsonlTask",
        "name": "mine",
        "role": "target",
        "path": str(tmp_path / "mine.jsonl"),
        "max_new_tokens": 4,
        "scorer": {"_target_": "lmm_forget.tasks.scoring.numbers.WholeNumberScorer"},
    }
    (folder / "mine.yaml").write_text("# Mine.\n" + yaml.safe_dump(node))
    code, report = checked(capsys, "task=mine", "--config-dir", str(tmp_path / "conf"), "sheet=none")
    assert code == 1 and report["sheet"] is None
    assert report["splits"]["train"]["unusable"]["count"] == 1
    assert "4: image" in report["splits"]["train"]["unusable"]["first"][0]
    assert report["duplicates"]["train/test"]["same_pixels"] == 1
    assert ["0", "same"] in report["duplicates"]["train/test"]["first"]
    assert ["s", "near"] in report["duplicates"]["train/test"]["first"], "resized and re-encoded"
    assert report["splits"]["test"]["unscored"]["count"] == 2, "WholeNumberScorer reads neither 'B.' nor '03:45'"
    assert report["splits"]["test"]["answers"]["formats"] == {"letter": 1, "time": 1}
    assert report["problems"] == 4 and "no validation samples" in report["absent"]["validation"]
    assert main(["check", "task=mine", "--config-dir", str(tmp_path / "conf"), "sheet=none"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "train, unusable: 4: image" in shown and "images in both train/test: 1 the same" in shown


def test_samples_longer_than_the_context_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["id,image,question,answer"]
    for i, words in enumerate((3, 900)):
        (tmp_path / f"{i}.png").write_bytes(png(i))
        rows.append(f"q{i},{i}.png,{'red ' * words},blue")
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
    folder = tmp_path / "conf" / "task"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        f"# Mine.\n_target_: lmm_forget.tasks.csv_table.CsvTask\nrole: held_out\npath: {tmp_path / 'data.csv'}\n"
        "max_new_tokens: 4\nscorer: {_target_: lmm_forget.tasks.scoring.exact.ExactMatchScorer}\n"
    )
    arguments = ["task=mine", "--config-dir", str(tmp_path / "conf"), "sheet=none", "model=tiny_onevision"]
    code, report = checked(capsys, *arguments)
    test = report["splits"]["test"]
    assert code == 1 and test["too_long"]["count"] == 1 and test["too_long"]["first"][0].startswith("q1: ")
    assert report["context"]["model"] == "tiny_onevision" and test["tokens"]["min"] < report["context"]["tokens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=cub"], "there is no task 'cub' where data.source=real; choose one of: ai2d, "),
        (["task=ai2d", "task.hubb=x"], "task ai2d: cannot be built from its YAML: "),
        (["task=blip_captions"], "task blip_captions: path is not set; give task.path=…"),
        (["task=ai2d", "samples=0"], "samples=0 must be a whole number of at least 1"),
        (["task=ai2d", "format=xml"], "format=xml is not known; choose one of: table, json"),
        (["task=tiny_ai2d", "sheet=notes.md"], "sheet=notes.md must be a file that ends in .png, or none"),
        (["task=tiny_ai2d", "sheet=/proc/x/y.png"], "sheet=/proc/x/y.png cannot be written"),
        (["task=tiny_ai2d", "task.n_test=-1"], "n_test=-1 must be a whole number"),
        (
            ["task=ai2d", "shet=x"],
            "there is no option shet=; data has: task=, model=, sheet=, samples=, out=",
        ),
        (["ai2d"], "cannot read 'ai2d'; data has: task=, model="),
        (["task=tiny_ai2d", "task.x=[1,"], "cannot read 'task.x=[1,': expected the node content"),
        (["task=tiny_ai2d", "task.x=&a {x: *a}"], "it refers to itself or is nested too deeply"),
        (["samples=3"], "check needs task=NAME"),
        (["task=ai2d", "--config-dir", "/nowhere"], "the configuration folder /nowhere does not exist"),
        (["task=ai2d"], "lmms-lab/ai2d cannot be reached (no network, and it is not in the cache)"),
    ],
)
def test_bad_requests_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("lmm-forget: error: ")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("data.jsonl", "out=data.jsonl cannot be used: data.jsonl is not a folder; name another folder"),
        ("data.jsonl/x/y", "data.jsonl is not a folder"),
        ("gone", "gone is not a folder"),  # a link that leads nowhere
        (" ", "out= is empty; give out=DIR"),
        ("", "out= is empty; give out=DIR"),
        ("x" * 300, "File name too long"),
    ],
)
def test_where_pictures_go_is_checked_before_anything_is_fetched(
    out: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lmm_forget.data import pixmo_preparation

    asked: list[object] = []
    monkeypatch.setattr(pixmo_preparation, "_load_rows", lambda *given: asked.append(given) or [])
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text("{}")
    Path("gone").symlink_to("nowhere")
    assert main(["prepare", "task=pixmocount", f"out={out}"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("lmm-forget: error: ")
    assert not asked and sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "gone"]
    assert main(["prepare", "task=pixmocount", "out=new/folder"]) == 0 and len(asked) == 1


def test_answer_formats_and_looks() -> None:
    found = {
        text: detect_answer_format(text) for text in ("B", "b", "Yes", "12", "3:45", "$1,200.5", "a cat", "A cat.")
    }
    assert found == {
        "B": "letter",
        "b": "one word",
        "Yes": "yes/no",
        "12": "whole number",
        "3:45": "time",
        "$1,200.5": "number",
        "a cat": "phrase",
        "A cat.": "sentence",
    }
    picture = Image.linear_gradient("L").rotate(30)
    assert (
        compute_difference_hash(picture)
        == compute_difference_hash(picture.resize((90, 80)))
        != compute_difference_hash(picture.rotate(180))
    )
