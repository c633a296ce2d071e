"""The pretraining command: its batches are what the real processor makes, and it resumes to the same bytes."""

import argparse
import hashlib
import random
from pathlib import Path

import pytest

from lmm_forget.tiny import pretrain, world
from lmm_forget.tiny.lmm import build_onevision


def test_batches_equal_the_real_processors() -> None:
    _, processor = build_onevision()
    batches = pretrain.Batches(processor, 0, 8, 100)
    names = ["mmstar", "docvqa", "cells", "single_thing"]
    drawn = []
    for name in names:
        picture = world.draw(name, "train", 5)
        drawn.append((name, picture.image, picture.questions[0]))
    ours, labels = batches.collate(drawn)
    texts = []
    for name, _, question in drawn:
        text = question.text + world.INSTRUCTIONS.get(name, "")
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        texts.append(
            processor.apply_chat_template(turn, add_generation_prompt=True)
            + question.answers[0]
            + "<|im_end|>"
        )
    real = processor(
        text=texts,
        images=[[image] for _, image, _ in drawn],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    assert real["input_ids"].tolist() == ours["input_ids"].tolist()
    assert (real["pixel_values"] - ours["pixel_values"]).abs().max() < 1e-6
    for row, label, (_, _, question) in zip(ours["input_ids"], labels, drawn, strict=True):
        taught = row[label != pretrain.IGNORE]
        assert processor.tokenizer.decode(taught) == question.answers[0] + "<|im_end|>"


def test_the_mixture_goes_from_captions_to_questions_and_never_to_a_skill() -> None:
    _, processor = build_onevision()
    batches = pretrain.Batches(processor, 0, 200, 1000)
    first, last = (batches.names(random.Random(0), step) for step in (0, 700))
    assert set(first) <= set(world.CAPTIONS)
    assert sum(name in world.BENCHMARKS for name in last) > 100
    assert not {name for phase in pretrain.PHASES for name in phase.mixture} & set(world.SKILLS)


def arguments(folder: Path, steps: int) -> argparse.Namespace:
    return argparse.Namespace(
        family="onevision",
        steps=steps,
        batch=4,
        lr=1e-3,
        seed=3,
        workers=1,
        run=str(folder / "run"),
        out=str(folder / "out"),
    )


def digest(run: pretrain.Pretraining) -> str:
    sums = hashlib.sha256()
    for p in run.parameters:
        sums.update(p.detach().numpy().tobytes())
    return sums.hexdigest()


def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = pretrain.Pretraining(arguments(tmp_path / "a", 4), 0)
    for _ in range(4):
        whole.one_step()
    first = pretrain.Pretraining(arguments(tmp_path / "b", 4), 0)
    first.one_step()
    first.one_step()
    first.save()
    del first
    second = pretrain.Pretraining(arguments(tmp_path / "b", 4), 0)
    assert second.step == 2
    second.one_step()
    second.one_step()
    assert digest(second) == digest(whole)


def test_unknown_family_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain.main(["--family", "cats"])
    assert "onevision" in capsys.readouterr().err
