"""What a job reads is known by its content: model folder, processor, data, scorer, method, one change each."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lmm_forget.models.fingerprint import fingerprint_model_parts
from lmm_forget.models.loading import load_model
from lmm_forget.models.model_source import find_packaged_model
from lmm_forget.store.input_fingerprints import (
    InputFingerprinter,
    describe_input_changes,
    select_training_inputs,
)
from lmm_forget.store.keys import compute_response_cache_key, compute_stage_key
from tests.store.test_keys import CONFIG, REST

SCORER = """
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from my_words import LIMIT  # a number does not tell where it came from

class MyScorer(ExactMatchScorer):
    def tolerant(self, answer, sample):
        from my_late import FACTOR
        return super().tolerant(answer, sample) * FACTOR
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, a data file with a picture, and a scorer of the user's own with a module it imports."""
    shutil.copytree(find_packaged_model("tiny_onevision"), tmp_path / "model")
    for split, colour in (("train", (200, 20, 20)), ("test", (20, 20, 200))):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{split}.png")
        row = {"id": split, "image": f"{split}.png", "question": "Which colour?", "answer": "red"}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "my_scorer.py").write_text(SCORER)
    (tmp_path / "my_words.py").write_text("LIMIT = 1\n")
    (tmp_path / "my_late.py").write_text("FACTOR = 1\n")
    return tmp_path


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    for name in ("my_scorer", "my_words", "my_late"):
        sys.modules.pop(name, None)


def config(folder: Path, scorer: str = "my_scorer.MyScorer") -> dict[str, Any]:
    task = {
        "_target_": "lmm_forget.tasks.jsonl.JsonlTask",
        "name": "mine",
        "role": "target",
        "path": {split: str(folder / f"{split}.jsonl") for split in ("train", "test")},
        "max_new_tokens": 4,
        "scorer": {"_target_": scorer},
    }
    return {
        "model": {"path": str(folder / "model")},
        "recipe": {"method": {"_target_": "lmm_forget.recipes.plain.Plain"}},
        "sequence": {"tasks": ["mine"]},
        "data": {"validation": False},
        "probe": {},
        "tasks": {"mine": task},
    }


def edit(path: Path, old: str, new: str) -> None:
    """Change a file and keep its size and its time stamps: only its content says so."""
    before, text = path.stat(), path.read_text()
    assert old in text and len(old) == len(new)
    path.write_text(text.replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def repaint(path: Path) -> None:
    Image.new("RGB", (32, 32), (20, 200, 20)).save(path)


CHANGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "model": (
        lambda f: edit(f / "model/config.json", '"rope_theta": 10000.0', '"rope_theta": 10001.0'),
        ["the model's folder"],
    ),
    "processor": (
        lambda f: edit(f / "model/chat_template.jinja", "assistant", "assistanx"),
        ["the model's folder"],
    ),
    "answer": (
        lambda f: edit(f / "test.jsonl", '"red"', '"tan"'),
        ["the data of task mine"],
    ),
    "picture": (
        lambda f: repaint(f / "train.png"),
        ["the data of task mine"],
    ),
    "scorer": (
        lambda f: (f / "my_scorer.py").write_text(SCORER + "# another rule\n") and None,
        ["the scorer of task mine"],
    ),
    "imported late": (
        lambda f: edit(f / "my_late.py", "FACTOR = 1", "FACTOR = 0"),
        ["the scorer of task mine"],
    ),
    "imported by the scorer": (
        lambda f: edit(f / "my_words.py", "LIMIT = 1", "LIMIT = 2"),
        ["the scorer of task mine"],
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_one_change_of_what_is_read_is_seen_and_named(what: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    before, unreadable = InputFingerprinter().compute_fingerprints(config(folder))
    assert not unreadable and {"model", "data.mine", "scorer.mine"} <= before.keys()
    assert InputFingerprinter().compute_fingerprints(config(folder)) == (before, {})
    make, named = CHANGES[what]
    make(folder)
    now, unreadable = InputFingerprinter().compute_fingerprints(config(folder))
    assert not unreadable
    assert describe_input_changes(before, now, unreadable) == named


def test_the_same_files_elsewhere_are_the_same(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    scorer = "lmm_forget.tasks.scoring.exact.ExactMatchScorer"
    before, _ = InputFingerprinter().compute_fingerprints(config(folder, scorer))
    there = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, there)
    (there / "model" / "README.txt").write_text("not read by any model")
    assert InputFingerprinter().compute_fingerprints(config(there, scorer))[0] == before


def test_what_cannot_be_read_any_more_is_told_and_is_no_change(folder: Path) -> None:
    here = config(folder, "lmm_forget.tasks.scoring.exact.ExactMatchScorer")
    before, _ = InputFingerprinter().compute_fingerprints(here)
    (folder / "train.jsonl").unlink()
    now, unreadable = InputFingerprinter().compute_fingerprints(here)
    assert set(unreadable) == {"data.mine"}
    assert "train.jsonl" in unreadable["data.mine"]
    assert describe_input_changes(before, now, unreadable) == []


def test_of_the_inputs_those_that_decide_weights_are_known() -> None:
    inputs = {"model": "m", "data.a": "t", "data.b": "u", "scorer.a": "s"}
    assert select_training_inputs(inputs, ["a"]) == {"model": "m", "data.a": "t"}


MODEL_CHANGES: dict[str, Callable[[Path], None]] = {
    "config": lambda f: edit(f / "config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 2e-06'),
    "generation": lambda f: (f / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]})) and None,
    "chat_template": lambda f: edit(f / "chat_template.jinja", "assistant", "assistanx"),
    "tokenizer": lambda f: edit(f / "tokenizer.json", '"lstrip": false', '"lstrip": true '),
    "processor": lambda f: edit(f / "processor_config.json", '"rescale_factor": 0.0039', '"rescale_factor": 0.0093'),
}


@pytest.mark.parametrize("part", MODEL_CHANGES)
def test_whatever_is_loaded_beside_the_weights_is_in_both_keys(part: str, folder: Path) -> None:
    def fingerprints() -> dict[str, str]:
        lmm = load_model({"name": "m", "path": str(folder / "model"), "dtype": "float32"})
        return fingerprint_model_parts(lmm.model, lmm.processor, lmm.end_token_ids)

    before = fingerprints()
    assert fingerprints() == before
    MODEL_CHANGES[part](folder / "model")
    after = fingerprints()
    assert [name for name in before if before[name] != after[name]] == [part]
    keys = {
        (
            compute_response_cache_key(
                "w", model_fingerprints=each, model_config=CONFIG["model"], versions=REST["versions"]
            ),
            compute_stage_key(CONFIG, "a", **{**REST, "model_fingerprints": each})[0],
        )
        for each in (before, after)
    }
    assert len({first for first, _ in keys}) == len({second for _, second in keys}) == 2
