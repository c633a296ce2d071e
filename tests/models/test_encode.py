"""Batches token by token: against examples written by hand, and against what the models do with them."""

from __future__ import annotations

import pytest
import torch

from lmm_forget.errors import DataError
from lmm_forget.models.family import IGNORE_INDEX
from lmm_forget.models.loading import LMM
from tests.models.subjects import subject
from tests.models.tiny import FAMILIES, picture, tiny_lmm

# One square picture: (1 base + 1 grid tile) of 4 x 4 patches, plus one newline per row (LLaVA); 56 x 56 pixels are
# 2 x 2 merged patches (Qwen). CLIP's class token is left out again by the "default" selection.
IMAGE_TOKENS = {"llava_onevision": 16 + 16 + 4, "llava_next": 16 + 16 + 4, "qwen2_5_vl": 4}
SLOT = {"llava_onevision": "<image>", "llava_next": "<image>", "qwen2_5_vl": "<|image_pad|>"}
BY_HAND = {
    "llava_onevision": (
        "<|im_start|>user\n{image}\nHow many?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "llava_next": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{image}\nHow many?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "qwen2_5_vl": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|>{image}<|vision_end|>How many?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
}
QUESTIONS = ["How many?", "Is the bird that sits on the left one red?"]
ANSWERS = ["seventeen", "no"]


def images() -> list:
    return [[picture()], [picture(112, 56, 1)]]


def by_hand(lmm: LMM, text: str) -> list[int]:
    """Token ids of `text`, its special tokens looked up by name and its other bytes one by one."""
    tokenizer, ids = lmm.processor.tokenizer, []
    special = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    while text:
        token = next((s for s in special if text.startswith(s)), None)
        if token is None:
            token = text[0]
            ids.append(tokenizer.convert_tokens_to_ids({" ": "Ġ", "\n": "Ċ"}.get(token, token)))
        else:
            ids.append(tokenizer.get_added_vocab()[token])
        text = text[len(token) :]
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_labels_match_an_example_written_by_hand(family: str) -> None:
    lmm = tiny_lmm(family)
    encoded = lmm.family.encode_batch(lmm.processor, QUESTIONS[:1], images()[:1], ["two"])
    template, end = BY_HAND[family]
    prompt = by_hand(lmm, template.replace("{image}", SLOT[family] * IMAGE_TOKENS[family]))
    answer = by_hand(lmm, "two" + end)
    assert encoded.tensors["input_ids"].tolist() == [prompt + answer]
    assert encoded.labels is not None
    assert encoded.labels.tolist() == [[IGNORE_INDEX] * len(prompt) + answer]
    assert encoded.lengths == [len(prompt) + len(answer)]
    assert lmm.family.get_end_of_answer_token(lmm.processor) == end
    assert lmm.end_token_ids == [answer[-1]]


@pytest.mark.parametrize("family", FAMILIES)
def test_training_sees_exactly_the_prompt_of_generation_then_answer_and_end(family: str) -> None:
    lmm = tiny_lmm(family)
    ask = lmm.family.encode_batch(lmm.processor, QUESTIONS, images())
    teach = lmm.family.encode_batch(lmm.processor, QUESTIONS, images(), ANSWERS)
    assert ask.labels is None and teach.labels is not None
    assert set(ask.tensors) == set(teach.tensors)
    for i, answer in enumerate(ANSWERS):
        prompt = ask.tensors["input_ids"][i, -ask.lengths[i] :].tolist()
        ending = by_hand(lmm, answer + BY_HAND[family][1])
        row = teach.tensors["input_ids"][i].tolist()
        assert row[: teach.lengths[i]] == prompt + ending
        counted = (teach.labels[i] != IGNORE_INDEX).nonzero().flatten().tolist()
        assert counted == list(range(len(prompt), len(prompt) + len(ending)))
        assert teach.labels[i][counted].tolist() == ending
        assert ask.tensors["attention_mask"][i].tolist() == [0] * (len(ask.tensors["input_ids"][i]) - len(prompt)) + [
            1
        ] * len(prompt)
        mask = teach.tensors["attention_mask"][i].tolist()
        assert mask == [1] * teach.lengths[i] + [0] * (len(row) - teach.lengths[i])
        assert set(row[teach.lengths[i] :]) <= {lmm.processor.tokenizer.pad_token_id}


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_ready_for_generate(family: str) -> None:
    lmm = tiny_lmm(family, seed=3)
    together = lmm.family.encode_batch(lmm.processor, QUESTIONS, images())
    out = lmm.model.generate(**together.tensors, max_new_tokens=5, do_sample=False, eos_token_id=lmm.end_token_ids)
    for i in range(2):
        alone = lmm.family.encode_batch(lmm.processor, [QUESTIONS[i]], [images()[i]])
        single = lmm.model.generate(**alone.tensors, max_new_tokens=5, do_sample=False, eos_token_id=lmm.end_token_ids)
        assert out[i, together.tensors["input_ids"].shape[1] :].tolist() == single[0, alone.lengths[0] :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_without_and_with_several_pictures(family: str) -> None:
    lmm = tiny_lmm(family)
    mixed = [[], [picture()], [picture(seed=1), picture(84, 56, 2)]]
    encoded = lmm.family.encode_batch(lmm.processor, ["a", "b", "c"], mixed, ["x", "y", "z"])
    slots = (encoded.tensors["input_ids"] == lmm.processor.image_token_id).sum(dim=1).tolist()
    assert slots[:2] == [0, IMAGE_TOKENS[family]]
    # OneVision cuts only a lone picture into tiles: several take their base view and one newline each.
    assert slots[2] == 2 * (16 + 1) if family == "llava_onevision" else slots[2] > slots[1]
    assert torch.isfinite(lmm.model(**encoded.tensors, labels=encoded.labels).loss)
    text_only = lmm.family.encode_batch(lmm.processor, ["a"], [[]], ["x"])
    assert "pixel_values" not in text_only.tensors
    assert torch.isfinite(lmm.model(**text_only.tensors, labels=text_only.labels).loss)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "tiny_qwen2_5_vl"])
def test_pictures_that_a_template_leaves_side_by_side_are_refused_by_position(name: str) -> None:
    """The positions of these models count a run of image tokens as one picture."""
    lmm = subject(name)
    template = lmm.processor.chat_template
    for token in ("<|vision_start|>", "<|vision_end|>"):
        template = template.replace(token, "")
    two, one = [picture(), picture(84, 56, 1)], [picture(seed=2)]
    assert torch.isfinite(logits_of(lmm, [one, two, []])).all()
    lmm.processor.chat_template = template
    assert torch.isfinite(logits_of(lmm, [one, []])).all(), "one picture cannot merge with another"
    with pytest.raises(
        DataError,
        match="sample 1 of the batch: its 2 images stand side by side in the prompt, and "
        "the model would take them for 1; the chat template of its Qwen.*VLProcessor has to put",
    ):
        logits_of(lmm, [one, two, []])
    slot = lmm.processor.image_token
    lmm.processor.chat_template = template.replace(slot, f"-{slot}")
    assert torch.isfinite(logits_of(lmm, [one, two * 2, []])).all(), "whatever stands between them is enough"


def logits_of(lmm: LMM, pictures: list[list]) -> torch.Tensor:
    batch = lmm.family.encode_batch(lmm.processor, ["?"] * len(pictures), pictures).tensors
    with torch.inference_mode():
        return lmm.model(**batch).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_beyond_the_context_are_refused_by_position(family: str) -> None:
    lmm = tiny_lmm(family, max_position_embeddings=160)
    assert lmm.family.context_length == 160
    with pytest.raises(
        DataError,
        match=r"sample 1 of the batch: prompt and answer have \d+ tokens, the model's context is 160",
    ):
        lmm.family.encode_batch(lmm.processor, QUESTIONS, images(), ["no", "x" * 100])
    with pytest.raises(DataError, match=r"sample 0 of the batch: prompt has \d+ tokens"):
        lmm.family.encode_batch(lmm.processor, ["y" * 200, "?"], images())
    fits = lmm.family.encode_batch(lmm.processor, ["?"], [[picture()]], ["x"])
    room = 160 - fits.lengths[0]
    assert lmm.family.encode_batch(lmm.processor, ["?"], [[picture()]], ["x" * (1 + room)]).lengths == [160]


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_in_the_data_are_refused(family: str) -> None:
    lmm = tiny_lmm(family)
    end = BY_HAND[family][1]
    with pytest.raises(DataError, match="sample 1 of the batch: its answer contains the model's reserved token"):
        lmm.family.encode_batch(lmm.processor, QUESTIONS, images(), ["1 < 2", f"no{end}"])
    with pytest.raises(DataError, match="sample 0 of the batch: its question contains the model's reserved token"):
        lmm.family.encode_batch(lmm.processor, [f"{SLOT[family]} what?", "b"], images())


def test_a_template_that_writes_the_first_token_itself_does_not_double_it() -> None:
    lmm = tiny_lmm("llava_next")
    bos = lmm.processor.tokenizer.bos_token_id
    plain = lmm.family.encode_batch(lmm.processor, ["a"], [[picture()]])
    lmm.processor.chat_template = "{{ '<|begin_of_text|>' }}" + lmm.processor.chat_template
    written = lmm.family.encode_batch(lmm.processor, ["a"], [[picture()]])
    assert plain.tensors["input_ids"].tolist() == written.tensors["input_ids"].tolist()
    assert plain.tensors["input_ids"][0].tolist().count(bos) == 1
