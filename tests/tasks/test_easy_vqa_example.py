"""The example of the README on the real package: what it writes is a usable task."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.task_loading import build_task

EXAMPLE = Path(__file__).parents[2] / "examples" / "easy_vqa" / "convert.py"
pytest.importorskip("easy_vqa")


def test_the_example_writes_a_task(tmp_path: Path) -> None:
    folder = tmp_path / "data, {odd}"
    command = [sys.executable, str(EXAMPLE), str(folder), "--images", "40"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    node = yaml.safe_load((folder / "conf" / "task" / "easy_vqa.yaml").read_text())
    task = build_task(node)
    assert isinstance(task, JsonlTask)
    train, validation, test = (task.validate_split(split) for split in ("train", "validation", "test"))
    assert f"{len(train) + len(validation)} train questions, {len(test)} test questions" in done.stdout
    assert len(set(test.image_ids)) == 40 == len(set(train.image_ids) | set(validation.image_ids))
    sample = test[0]
    assert sample.images[0].size == (64, 64) and sample.images[0].mode == "RGB"
    assert task.score_answer(sample.answers[0], sample)["value"] == 1.0
    words = {
        "yes",
        "no",
        "circle",
        "rectangle",
        "triangle",
        "red",
        "green",
        "blue",
        "black",
        "gray",
        "teal",
        "brown",
    }
    assert {one.answers[0] for one in test} <= words | {"yellow"}
