"""The pretraining command: its batches are what the real processor makes, and it resumes to the same bytes."""

import argparse
import hashlib
import random
from pathlib import Path

import pytest
import torch

from lmm_forget.models.registry import resolve_family
from lmm_forget.tiny import pretrain, renderers
from lmm_forget.tiny.architectures import (
    BUILDERS,
    VISION_END,
    VISION_START,
    build_onevision,
    fit_tokenizer,
    load_packaged_tokenizer,
)

# Cells of 16 x 16 pixels: LLaVA has a base view, a tile and a newline per row.
IMAGE_TOKENS = {"onevision": 36, "next": 36, "qwen2_5_vl": 16}


@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_batches_equal_the_real_processors(family: str) -> None:
    model, processor = BUILDERS[family]()
    batches = pretrain.PretrainBatches(processor, 0, 8, 100)
    names = ["mmstar", "docvqa", "cells", "single_thing"]
    drawn = []
    for name in names:
        picture = renderers.render_image(name, "train", 5)
        drawn.append((name, picture.image, picture.questions[0]))
    ours, labels = batches.collate_samples(drawn)
    texts = []
    for name, _, question in drawn:
        text = question.text + renderers.INSTRUCTIONS.get(name, "")
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        texts.append(
            processor.apply_chat_template(turn, add_generation_prompt=True) + question.answers[0] + "<|im_end|>"
        )
    real = processor(
        text=texts,
        images=[[image] for _, image, _ in drawn],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    # Without it the model takes every sample to have one picture.
    assert set(real) - {"batch_num_images"} == set(ours)
    for key in ours:
        assert real[key].shape == ours[key].shape and real[key].dtype == ours[key].dtype, key
        assert (real[key] - ours[key]).abs().max() < 1e-6, key
    assert (ours["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [IMAGE_TOKENS[family]] * 4
    assert torch.isfinite(model(**ours, labels=labels).loss)
    for row, label, (_, _, question) in zip(ours["input_ids"], labels, drawn, strict=True):
        taught = row[label != pretrain.IGNORE_INDEX]
        assert processor.tokenizer.decode(taught) == question.answers[0] + "<|im_end|>"


def test_all_families_share_tokenizer_prompt_and_size() -> None:
    """Qwen's has two tokens more, where the LLaVAs have the blank and the line break around a picture."""
    vocabulary = load_packaged_tokenizer().get_vocab()
    assert sorted(vocabulary.values()) == list(range(1024))
    around = {VISION_START: 1024, VISION_END: 1025}
    prompts, texts = set(), set()
    for name, build in BUILDERS.items():
        model, processor = build()
        own = around if name == "qwen2_5_vl" else {}
        assert processor.tokenizer.get_vocab() == vocabulary | own
        prompt = resolve_family(model).render_prompt(processor, "How many?", 1)
        prompts.add(prompt.replace(VISION_START, " ").replace(VISION_END, "\n"))
        assert all(prompt.count(token) == 1 for token in own)
        texts.add(resolve_family(model).render_prompt(processor, "How many?", 0))
        assert 2e6 < sum(p.numel() for p in model.parameters()) < 5e6
    assert len(prompts) == len(texts) == 1


def test_every_picture_of_qwen_has_its_own_tokens_around_it() -> None:
    model, processor = BUILDERS["qwen2_5_vl"]()
    ids = [processor.tokenizer.convert_tokens_to_ids(token) for token in (VISION_START, VISION_END)]
    assert [model.config.vision_start_token_id, model.config.vision_end_token_id] == ids
    slot = VISION_START + "<image>" + VISION_END
    assert (
        resolve_family(model).render_prompt(processor, "a?", 2).startswith(f"<|im_start|>user{slot}{slot}a?<|im_end|>")
    )
    image, first, second = {"type": "image"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}
    texts = [
        processor.apply_chat_template([{"role": "user", "content": parts}])
        for parts in ([image, first, image, second], [first, image], [first, second], "a")
    ]
    wanted = [f"{slot}a{slot}b", f" \na{slot}", " \na\nb", " \na"]
    assert texts == [f"<|im_start|>user{text}<|im_end|>" for text in wanted]


def test_a_new_tokenizer_takes_the_shipped_ones_place() -> None:
    core = fit_tokenizer(600)
    assert {"<image>", "Ġcircle", "7"} < core.get_vocab().keys() and "Ġ77" not in core.get_vocab()
    model, processor = BUILDERS["next"](core)
    assert len(processor.tokenizer) == model.config.text_config.vocab_size == 600


def test_the_mixture_goes_from_captions_to_questions_and_never_to_a_skill() -> None:
    _, processor = build_onevision()
    batches = pretrain.PretrainBatches(processor, 0, 200, 1000)
    first, last = (batches.sample_renderer_names(random.Random(0), step) for step in (0, 700))
    assert set(first) <= set(renderers.CAPTIONS)
    assert sum(name in renderers.BENCHMARKS for name in last) > 100
    assert not {name for phase in pretrain.PHASES for name in phase.mixture} & set(renderers.SKILLS)


def arguments(folder: Path, steps: int, family: str) -> argparse.Namespace:
    return argparse.Namespace(
        family=family,
        steps=steps,
        batch=4,
        lr=1e-3,
        seed=3,
        workers=1,
        fit_tokenizer=False,
        more=0,
        run=str(folder / "run"),
        out=str(folder / "out"),
    )


def digest(run: pretrain.PretrainRun) -> str:
    sums = hashlib.sha256()
    for p in run.parameters:
        sums.update(p.detach().numpy().tobytes())
    return sums.hexdigest()


@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(family: str, tmp_path: Path) -> None:
    whole = pretrain.PretrainRun(arguments(tmp_path / "a", 4, family), 0)
    for _ in range(4):
        whole.train_step()
    first = pretrain.PretrainRun(arguments(tmp_path / "b", 4, family), 0)
    first.train_step()
    first.train_step()
    first.save_state()
    del first
    second = pretrain.PretrainRun(arguments(tmp_path / "b", 4, family), 0)
    assert second.step == 2
    second.train_step()
    second.train_step()
    assert digest(second) == digest(whole)


def test_the_run_that_made_the_shipped_base_still_starts_as_it_did(tmp_path: Path) -> None:
    args = arguments(tmp_path, 3600, "onevision")
    args.batch, args.seed = 8, 0
    run = pretrain.PretrainRun(args, 0)
    assert [run.train_step(), run.train_step()] == pytest.approx([7.0018, 6.9466], abs=2e-3)


def test_more_steps_are_a_cycle_of_their_own(tmp_path: Path) -> None:
    """The rate rises and falls once more behind the whole run, and the mixture is the last one."""
    args = arguments(tmp_path, 60, "next")
    args.more = 40
    run = pretrain.PretrainRun(args, 0)
    rates = []
    for step in range(100):
        run.step = step
        rates.append(run.compute_learning_rate())
    assert max(rates[60:]) == pytest.approx(0.4e-3, rel=0.05) and rates[59] < 0.1e-3 and rates[99] < 0.02e-3
    assert run.batches.get_phase(59) is pretrain.PHASES[-1] and run.batches.get_phase(60) is pretrain.LAST_PHASE
    assert not set(pretrain.LAST_PHASE.mixture) & set(renderers.SKILLS)


def test_unknown_family_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain.main(["--family", "cats"])
    assert "onevision" in capsys.readouterr().err
