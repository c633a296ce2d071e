"""Training made from published sources: CUB's archive, PixMo-Count's links, clocks from a file of one's own."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, List, Value

from lmm_forget.cli.data import main
from lmm_forget.errors import DataError
from lmm_forget.tasks.task import Task
from tests.tasks import published
from tests.tasks.published import cub, png

Made = Callable[..., Task]


def test_cub_is_asked_with_26_seeded_options(tmp_path: Path, made: Made) -> None:
    folder = cub(tmp_path / "CUB_200_2011")
    train = made("cub200", train_path=str(tmp_path), validation_fraction=0).validate_split("train")
    assert len(train) == 60, "the official train split"
    for sample in train:
        lines = sample.question.split("\n")
        assert lines[0].endswith(("?", "image.")) and lines[1] == (
            "Answer with the option's letter from the given choices directly."
        )
        assert [line[:3] for line in lines[2:]] == [f"{chr(65 + i)}. " for i in range(26)]
        assert sample.choices is not None and len(set(sample.choices)) == 26
        assert sample.choices[ord(sample.answers[0]) - 65] == sample.meta["species"]
        assert sample.meta["species"].startswith("Red billed Bird")
    places = Counter(sample.answers[0] for sample in train)
    assert len(places) > 15, "the right letter moves about"
    again = made("cub200", train_path=str(folder), validation_fraction=0)
    assert [s.question for s in again.validate_split("train")] == [s.question for s in train]
    other = made("cub200", train_path=str(folder), options_seed=1, validation_fraction=0)
    assert [s.question for s in other.validate_split("train")] != [s.question for s in train]
    assert other.fingerprint_split("train") != again.fingerprint_split("train")
    cut = made("cub200", train_path=str(folder), validation_fraction=0.3)
    kept, apart = cut.validate_split("train"), cut.validate_split("validation")
    assert len(kept) + len(apart) == 60 and not {s.id for s in kept} & {s.id for s in apart}
    assert {s.id: s.question for s in kept}.items() <= {s.id: s.question for s in train}.items()


def test_cub_says_what_is_missing(tmp_path: Path, made: Made) -> None:
    with pytest.raises(DataError, match=r"extracted archive CUB_200_2011 .*train_path=FOLDER"):
        made("cub200").validate_split("train")
    with pytest.raises(DataError, match=r"has no images.txt"):
        made("cub200", train_path=str(tmp_path)).validate_split("train")
    folder = cub(tmp_path / "CUB_200_2011")
    (folder / "images" / "001.Red_billed_Bird1" / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 of 60 train samples cannot be used \(first: train-1: image .*1.jpg"):
        made("cub200", train_path=str(folder), validation_fraction=0).validate_split("train")
    (folder / "train_test_split.txt").write_text("1 1\n")
    with pytest.raises(DataError, match=r"train_test_split.txt lacks image 2"):
        made("cub200", train_path=str(folder)).validate_split("train")
    (folder / "classes.txt").write_text("1 001.Bird\n")
    with pytest.raises(DataError, match=r"classes.txt names 1 species; 26 options need as many"):
        made("cub200", train_path=str(folder)).validate_split("train")


def test_clocks_are_taught_from_a_file(tmp_path: Path, made: Made) -> None:
    with pytest.raises(
        DataError, match=r"its training set is not published; give your own as \+tasks.timeclock.train_path"
    ):
        made("timeclock").validate_split("train")
    file = published.clocks(tmp_path, 20)
    task = made("timeclock", train_path=str(file), validation_fraction=0)
    train = task.validate_split("train")
    assert len(train) == 20 and train[3].answers == ("03:30",)
    assert task.format_question(train[3], for_training=True) == "What time does the clock show in this image?"
    lines = [{"id": i, "image": f"{i}.png", "question": "Time?", "answer": "01:30"} for i in range(20)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert (
        len(made("timeclock", train_path=str(tmp_path / "mine.jsonl"), validation_fraction=0).validate_split("train"))
        == 20
    )


# --- PixMo-Count, from links that work, do not, or lead to something else ------------------------------------


class _Web(http.server.BaseHTTPRequestHandler):
    failures: Counter[str]
    asked: Counter[str]

    def log_message(self, *_: Any) -> None:
        """Be silent."""

    def do_GET(self) -> None:
        kind, _, number = self.path.strip("/").partition("/")
        self.asked[self.path] += 1
        content = png(int(number.split(".")[0]))
        if kind == "gone":
            return self._send(404, b"")
        if kind == "flaky" and self.asked[self.path] == 1:
            return self._send(503, b"", {"Retry-After": "0"})
        if kind == "down":
            return self._send(500, b"")
        if kind == "other":
            content = png(999)
        if kind == "half" and self.asked[self.path] == 1:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:20])
            return None
        return self._send(200, content)

    def _send(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def web() -> Iterator[tuple[str, Counter[str]]]:
    asked: Counter[str] = Counter()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Web", (_Web,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


KINDS = ("fine", "fine", "flaky", "half", "gone", "other", "down")


def links(folder: Path, base: str) -> Path:
    """allenai/pixmo-count in its published schema: seven train pictures (one with two rows), two for validation."""
    points = List({"x": Value("float32"), "y": Value("float32")})
    features = Features(
        {
            "image_url": Value("string"),
            "image_sha256": Value("string"),
            "count": Value("int32"),
            "points": points,
        }
        | {"label": Value("string")}
    )

    def row(kind: str, number: int, label: str, count: int) -> dict[str, Any]:
        sha = hashlib.sha256(png(number)).hexdigest()
        url = f"{base}/{kind}/{number}.png"
        return {"image_url": url, "image_sha256": sha, "count": count, "points": None, "label": label}

    train = [row(kind, i, "dogs", i) for i, kind in enumerate(KINDS)] + [row("fine", 0, "3D glasses", 1)]
    splits = {"train": train, "validation": [row("fine", 20 + i, "cats", 2) for i in range(2)]}
    for split, rows in splits.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows, features=features).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


def test_pixmo_count_is_downloaded_verified_and_resumed(
    tmp_path: Path, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pixmo"
    with web() as (base, asked):
        command = ["prepare", "task=pixmocount", f"out={out}", f"source={links(tmp_path / 'rows', base)}"]
        command += ["rate=500", "workers=3", "retries=1", "timeout=20"]
        assert main([*command, "format=json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["images"], report["rows"], report["downloaded"]) == (9, 10, 6)
        assert report["reasons"] == {
            "HTTP 404": 1,
            "the image behind the link has changed": 1,
            "HTTP 500": 1,
        }
        assert (report["lost_rows"], report["may_come_back"]) == (3, 1)
        assert report["usable_rows"] == {"train": 5, "validation": 2}
        assert asked["/gone/4.png"] == 1 and asked["/flaky/2.png"] == 2 and asked["/half/3.png"] == 2
        before = dict(asked)
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert "9 images: 0 downloaded, 6 were there, 3 gone" in shown and "1 failed temporarily" in shown
        assert {path for path in asked if asked[path] > before[path]} == {"/down/6.png"}, "only what may come back"
        files = sorted((out / "images").glob("*/*"))
        assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.name for file in files)
        files[0].write_bytes(b"damaged")
        assert main([*command, "retry_gone=true"]) == 0
        assert asked["/gone/4.png"] == 2
        assert "1 downloaded, 5 were there" in capsys.readouterr().out

    task = made("pixmocount", train_path=str(out))
    train, validation = task.validate_split("train"), task.validate_split("validation")
    assert [sample.id for sample in train] == ["train-0", "train-1", "train-2", "train-3", "train-7"]
    assert train[0].image_id == train[4].image_id, "both rows of a picture are kept, as one cluster"
    assert task.format_question(train[4], for_training=True) == "How many 3D glasses are in this image?"
    assert task.get_target_answer(train[4]) == "There is 1 3D glasses in this image."
    assert task.get_target_answer(train[2]) == "There are 2 dogs in this image." and train[2].answers == ("2",)
    assert task.score_answer("2", train[2])["value"] == 1.0 and len(validation) == 2
    as_asked = made("pixmocount", train_path=str(out), train_prompt="as_evaluated")
    assert as_asked.format_question(train[2], for_training=True).endswith("you should output 1.")

    report = json.loads((out / "report.json").read_text())
    (out / "report.json").write_text(json.dumps({**report, "complete": False}))
    with pytest.raises(DataError, match=r"half downloaded \(6 of 9 images\); `lmm-forget data prepare task=pix"):
        made("pixmocount", train_path=str(out)).validate_split("train")
    with pytest.raises(DataError, match=r"was not prepared; .*prepare"):
        made("pixmocount", train_path=str(tmp_path)).validate_split("train")
    with pytest.raises(DataError, match=r"training needs the data set's images; .*prepare task=pixmocount out=DIR"):
        made("pixmocount").validate_split("train")


def test_prepare_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["task=ai2d", f"out={tmp_path}"], "task ai2d needs no preparing; pixmocount does"),
        (["task=pixmocount"], "prepare needs out=DIR"),
        (["task=pixmocount", f"out={tmp_path}", "rate=fast"], "rate=fast must be a number above 0"),
        (["task=pixmocount", f"out={tmp_path}", f"source={tmp_path / 'no'}"], "is missing"),
        (["task=pixmocount", "speed=3"], "there is no option speed=; data has: task="),
    ):
        assert main(["prepare", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
