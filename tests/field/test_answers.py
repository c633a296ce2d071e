"""Questions on their way to a model, and what comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lmm_forget.errors import DataError, LmmForgetError
from lmm_forget.models.loading import LMM
from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.sample_set import limit_samples
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from tests.evaluation.questions import evaluate_task
from tests.field.inputs import benchmark, job, read_rows, results, said, tiny, write_rows


@pytest.fixture(scope="module")
def lmm() -> LMM:
    return tiny()


def mixed(folder: Path) -> Path:
    """Questions of different lengths about no, one small, one wide and two pictures."""
    Image.effect_noise((64, 64), 80).convert("RGB").save(folder / "a.png")
    Image.effect_noise((300, 40), 80).convert("L").save(folder / "b.png")
    shown: list[list[str]] = [[], ["a.png"], ["b.png"], ["a.png", "b.png"], ["a.png"], []]
    rows = [
        {"id": f"q{i}", "images": images, "question": "Which colour, and why? " * (1 + i), "answer": "red"}
        for i, images in enumerate(shown)
    ]
    return write_rows(folder / "mixed.jsonl", rows)


def test_answers_do_not_depend_on_the_batch(lmm: LMM, tmp_path: Path) -> None:
    """lmms-eval 236 and LLaVA 1928: ScienceQA fell from 69.6 to 58.7 at batch size 2, and MME changed at 16.

    Right: the same answers alone and together, though questions differ in length and in their number of pictures.
    """
    data = mixed(tmp_path)
    alone = said(lmm, data, eval_batch=1)
    assert said(lmm, data, eval_batch=2) == alone == said(lmm, data, eval_batch=6)


def test_an_error_while_asking_is_no_empty_answer(lmm: LMM, shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval (models/simple/llava_hf.py): whatever generation raised was caught, and an empty text was scored.

    Right: the error ends the evaluation and names the task and the samples.
    """

    def out_of_order(*_: Any, **__: Any) -> None:
        raise RuntimeError("shape mismatch\nsecond line")

    monkeypatch.setattr(lmm.model, "generate", out_of_order)
    task = benchmark(shared_home / "data.jsonl")
    with pytest.raises(LmmForgetError, match="task mine: evaluating 24 samples .*shape mismatch") as caught:
        evaluate_task(lmm, task, task.load_samples("test"))
    assert "\n" not in str(caught.value)


def test_a_model_that_says_nothing(shared_home: Path) -> None:
    """llama_index 12623: empty answers crashed the parser of an evaluation.

    Right: an empty answer is an answer, counts as wrong, and stays in the mean.
    """
    silent = tiny()
    silent.end_token_ids = list(range(len(silent.processor.tokenizer)))
    task = benchmark(shared_home / "data.jsonl")
    found = evaluate_task(silent, task, task.load_samples("test"))
    assert len(found) == 24
    assert {(answer.text, answer.value, answer.tokens) for answer in found} == {("", 0.0, 1)}


@pytest.mark.parametrize("where", ["question", "answer"])
@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<image>"])
def test_control_tokens_in_the_data(shared_home: Path, lmm: LMM, where: str, token: str) -> None:
    """Long-Context-Data-Engineering 14 and OWASP/AISVS 930: texts of the data became turns and ends of answers.

    Right: a sample with one of the model's own tokens is refused by its id.
    """
    row = {"id": "odd one", "image": str(shared_home / "img/0.png"), "question": "What?", "answer": "red"}
    row[where] = f"is {token} it"
    encoding = [[row["question"]], [[Image.new("RGB", (64, 64))]], [row["answer"]]]
    with pytest.raises(DataError, match="reserved token") as caught:
        lmm.family.encode_batch(lmm.processor, *encoding)
    assert token in str(caught.value)


def test_a_sample_with_a_control_token_ends_the_run_by_its_id(own_home: Path) -> None:
    """LlamaFactory 8434 and transformers 36002: 'image features and image tokens do not match', in some later step.

    Right: a question with more marks than pictures is found before the first step, with its task and id.
    """
    rows = read_rows(own_home / "data.jsonl")
    for row in rows:
        row["question"] = "Is <image> or <image> it?" if row["id"] == "q7" else row["question"]
    write_rows(own_home / "data.jsonl", rows)
    failed = job(own_home, "data.eval_samples=24", into="marked", code=2)
    status = json.loads((failed / "status.json").read_text())
    assert status["state"] == "failed"
    assert "task mine" in status["error"] and "q7" in status["error"] and "<image>" in status["error"]


def test_nothing_is_cut_to_fit(own_home: Path) -> None:
    """lmms-finetune 43: what exceeded the length limit was cut off, answers included, and loss was 0.

    Right: a sample that does not fit the model's context ends the run by its id, or is left out and counted.
    """
    taught = JsonlTask(
        name="mine", role="target", path=str(own_home / "data.jsonl"), scorer=ExactMatchScorer(), max_new_tokens=8
    )
    odd = taught.load_samples("train")[0].id
    rows = read_rows(own_home / "data.jsonl")
    write_rows(
        own_home / "data.jsonl",
        [{**row, "question": "Which colour? " * 400} if row["id"] == odd else row for row in rows],
    )
    failed = job(own_home, into="long", code=2)
    error = json.loads((failed / "status.json").read_text())["error"]
    assert odd in error and "512" in error and "\n" not in error
    skipping = job(own_home, "data.on_bad_sample=skip", into="skipped")
    data = results(skipping)["data"]["mine"]
    assert data["trained"]["skipped"] == 1 and data["trained"]["samples"] == len(taught.load_samples("train")) - 1


def test_a_limit_is_no_head_of_the_file() -> None:
    """lm-evaluation-harness 2598 and helm 220: a limit took the first samples, of a file sorted by subject.

    Right: the part is spread over the file, the same in every run, and a larger one contains it.
    """
    rows: Any = [f"{'abcd'[i // 250]}{i}" for i in range(1000)]
    small, large = (list(limit_samples(rows, n, "bench")) for n in (40, 80))
    assert {row[0] for row in small} == set("abcd") and set(small) < set(large)
    assert small == list(limit_samples(rows, 40, "bench")) != list(limit_samples(rows, 40, "other bench"))
    assert torch.is_inference_mode_enabled() is False
