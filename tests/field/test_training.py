"""What a stage learns from: which samples, which labels, in which order, and in which numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmm_forget.config import compose_config, resolve_config
from lmm_forget.distributed.heartbeat import read_job_status
from lmm_forget.models.family import IGNORE_INDEX
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.store import StageCheckpoints, Store
from lmm_forget.training.micro_batches import make_micro_batch_indices
from lmm_forget.training.train_state import ResumeConfig
from tests.field.inputs import home, job, results
from tests.models.tiny import FAMILIES, picture, tiny_lmm
from tests.training.lesson import HARDWARE, TRAINING, samples, teach

FP32 = {**HARDWARE, "precision": "fp32"}


class Killed(BaseException):
    """The process ends here, without a word."""


class Dying(StageCheckpoints):
    """Keeps the state of step 4, and dies."""

    def save(self, step: int, tensors: Any, state: Any) -> None:
        super().save(step, tensors, state)
        if step == 4:
            raise Killed


class Heard(list):
    """Samples that note who was read."""

    def __init__(self, items: list[Any], read: list[str]) -> None:
        super().__init__(items)
        self.read = read

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.read.append(found.id)
        return found


def test_a_resume_goes_on_in_the_order(tmp_path: Path) -> None:
    """ms-swift 10050 and accelerate 4071: after a resume the loader began its order anew, so samples came twice.

    Right: killed and taken up again, a stage reads what was left of its order and ends with the same bytes.
    """
    training = {**TRAINING, "epochs": 3}
    whole: list[str] = []
    lmm, *_ = teach("sa_proj", items=Heard(samples(), whole), training=training, hardware=FP32)
    store = Store(tmp_path)
    with pytest.raises(Killed):
        teach(
            "sa_proj",
            items=samples(),
            training=training,
            hardware=FP32,
            resume_config=ResumeConfig(Dying(store, "k"), 2),
        )
    torch.manual_seed(99)
    rest: list[str] = []
    again, _, fitted, _ = teach(
        "sa_proj",
        items=Heard(samples(), rest),
        training=training,
        hardware=FP32,
        resume_config=ResumeConfig(StageCheckpoints(store, "k"), 2),
    )
    assert fitted.resumed_from_step == 4 and len(whole) == 36
    assert rest == whole[16:]
    assert hash_parameters(again.model) == hash_parameters(lmm.model)


def test_a_loss_that_is_not_finite_ends_the_job(tmp_path: Path) -> None:
    """Megatron-LLM 33 and ludwig PR 3740: training went on with NaN weights, and they were saved as the result.

    Right: the job fails at that step with one line; no stage is filed and there are no results.
    """
    folder = home(tmp_path)
    words = ["training.learning_rate=1e30", "training.max_grad_norm=null", "recipe=llm", "training.max_steps=4"]
    failed = job(folder, *words, into="diverged", code=2)
    status = read_job_status(failed)
    assert status["state"] == "failed" and "\n" not in status["error"]
    assert "the loss is nan in step 2 of 4" in status["error"]
    assert not (failed / "results.json").exists()
    assert not list((folder / "multirun" / ".store" / "stages").glob("*/record.json"))


@pytest.mark.parametrize("loss", ["sample_mean", "token_mean"])
def test_accumulation_changes_nothing(loss: str) -> None:
    """transformers PR 34191 and torchtune PR 1875: with accumulated gradients a mean of means weighed answers wrongly.

    Right: micro-batches of 1, 2 and 4 give the weights of the whole batch, though answers differ in length.
    """
    found = []
    for micro_batch in (1, 2, 4):
        training = {**TRAINING, "loss": loss, "max_steps": 1, "warmup_ratio": 0.0}
        _, _, fitted, delta = teach("sa_proj", training=training, hardware={**FP32, "micro_batch_size": micro_batch})
        found.append((fitted.step_losses[0], delta))
    for value, delta in found[:2]:
        assert value == pytest.approx(found[2][0], rel=1e-5)
        # One AdamW step moves every element by the learning rate: a wrong weighting turns signs around.
        moved = torch.cat([(delta[name] - found[2][1][name]).flatten() for name in delta])
        assert (moved.abs() > 1e-4).float().mean() < 0.01


def test_samples_of_the_last_batch_that_is_not_full_are_counted(plain: Path) -> None:
    """rllm PR 870 and mlx-lm PR 1413: the last, smaller batch was dropped (or weighed too much) without a word.

    Right: how many an epoch leaves out is in the results, and other epochs leave out others.
    """
    (stage,) = results(plain)["stages"]
    taught = results(plain)["data"]["mine"]["trained"]["samples"]
    assert taught % 4 and stage["dropped"] == taught % 4
    left_out: list[int] = []
    for epoch in range(24):
        order = make_micro_batch_indices(
            10, num_steps=2 * (epoch + 1), global_batch_size=4, micro_batch_size=4, seed=0, task="t"
        )[-2:]
        left_out += set(range(10)) - {i for slot in order for i in slot.sample_indices}
    assert set(left_out) == set(range(10)) and len(left_out) == 2 * 24


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_answer_and_its_end_are_labels(family: str) -> None:
    """trl 1493 and 1191: a response template that was not found left all labels masked, or none.

    Right: labels are the answer's tokens and the token that ends it, in every row, and nothing of the prompt.
    """
    lmm = tiny_lmm(family)
    said = ["a cat", "no", "assistant\nuser"]
    questions = ["What?", "Is it a very long question, longer than the others?", "assistant"]
    encoded = lmm.family.encode_batch(lmm.processor, questions, [[picture(56, 56, i)] for i in range(3)], said)
    assert encoded.labels is not None
    for row, answer in zip(encoded.labels, said, strict=True):
        text = lmm.processor.tokenizer.decode(row[row != IGNORE_INDEX])
        assert text == lmm.family.get_answer_prefix(lmm.processor) + answer + lmm.family.get_end_of_answer_token(
            lmm.processor
        )
    same = encoded.labels == encoded.tensors["input_ids"]
    assert bool((same | (encoded.labels == IGNORE_INDEX)).all())


def test_the_end_is_learned_though_it_is_also_the_padding() -> None:
    """llm-course 33 and torchtune 949: with pad = eos every end token was masked, and models never stopped.

    Right: the end of the answer is a label, the same token as padding is not.
    """
    lmm = tiny_lmm("llava_onevision")
    tokenizer = lmm.processor.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    encoded = lmm.family.encode_batch(lmm.processor, ["What?"] * 2, [[], []], ["yes", "a much longer answer"])
    assert encoded.labels is not None
    end = tokenizer.eos_token_id
    assert [int((row == end).sum()) for row in encoded.labels] == [1, 1]
    padded = encoded.tensors["attention_mask"][0] == 0
    assert padded.any() and (encoded.tensors["input_ids"][0][padded] == end).all()
    assert (encoded.labels[0][padded] == IGNORE_INDEX).all()


def test_small_steps_of_a_bf16_checkpoint_are_not_lost() -> None:
    """NeMo Automodel PR 3444 and pytorch/ao PR 1124: steps of 6e-6 on weights kept in bf16 round to no step at all.

    Right: what is trained is held in fp32, so that steps too small for bf16 add up and reach the checkpoint.
    """
    rate = 1e-5
    training = {**TRAINING, "learning_rate": rate, "epochs": 5, "warmup_ratio": 0.0}
    base = dict(tiny_lmm("llava_onevision", dtype=torch.bfloat16).model.named_parameters())
    *_, delta = teach("sa_proj", dtype=torch.bfloat16, training=training, hardware=FP32)
    moved = total = 0
    for name, after in delta.items():
        before = base[name].detach()
        assert after.dtype == torch.bfloat16
        coarse = before.abs() * 2**-9 > 1.1 * rate  # half the distance to the next bf16 is more than a step
        moved, total = moved + int((after != before)[coarse].sum()), total + int(coarse.sum())
    assert total > 1000 and moved / total > 0.05


def test_recomputed_activations_change_nothing() -> None:
    """transformers 23170 and 21381: with checkpointing and frozen embeddings no gradient reached the blocks.

    Right: the same weights with and without it, and they moved.
    """
    before = hash_parameters(tiny_lmm("llava_onevision").model)
    plain, plan, *_ = teach("mlp_gateup", hardware=FP32)
    spared, *_ = teach("mlp_gateup", hardware={**FP32, "activation_checkpointing": True})
    assert hash_parameters(plain.model) == hash_parameters(spared.model)
    assert all(hash_parameters(spared.model)[name] != before[name] for name in plan.trainable)


def test_a_rate_in_exponent_form_is_a_number(tmp_path: Path) -> None:
    """LlamaFactory 4014 and trl PR 1450: YAML reads `learning_rate: 1e-4` as a text, and the optimizer crashes.

    Right: the same number, from a file or the command line, with or without a point.
    """
    (tmp_path / "experiment").mkdir()
    for i, text in enumerate(("1e-4", "1.0E-4")):
        content = f"# @package _global_\ntraining:\n  learning_rate: {text}\n"
        (tmp_path / "experiment" / f"e{i}.yaml").write_text(content)
        from_file = resolve_config(compose_config([f"experiment=e{i}"], tmp_path))
        typed = resolve_config(compose_config([f"training.learning_rate={text}"]))
        assert from_file["training"]["learning_rate"] == typed["training"]["learning_rate"] == 1e-4
        assert from_file["training"]["learning_rate_source"] == "experiment"
