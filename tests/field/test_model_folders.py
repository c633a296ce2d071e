"""Folders with models that people download, cut, merge and edit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmm_forget.errors import ConfigError
from lmm_forget.models.weight_hashes import hash_parameters
from tests.field.inputs import answers, edit_json, job, model_copy, said, tiny, work_done
from tests.models.tiny import picture, tiny_lmm

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 14868712\n"


def refused(folder: Path, *words: str) -> None:
    """Assert that loading a folder is refused in one line with all `words`."""
    with pytest.raises(ConfigError) as caught:
        tiny(folder)
    assert "\n" not in str(caught.value)
    for word in (str(folder), *words):
        assert word in str(caught.value)


def test_weights_that_are_a_git_lfs_pointer(tmp_path: Path) -> None:
    """transformers 27923: a clone without git-lfs left pointers for weights, and loading died with HeaderTooLarge.

    Right: one line that names the folder and says to copy the checkpoint again; the same for cut files.
    """
    model = model_copy(tmp_path / "model")
    (model / "model.safetensors").write_text(POINTER)
    refused(model, "copy the whole checkpoint again")
    whole = model_copy(tmp_path / "cut") / "model.safetensors"
    whole.write_bytes(whole.read_bytes()[:-1000])
    refused(whole.parent, "copy the whole checkpoint again")


def test_tensors_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    """LLaVA 1679 and LLaVA-Rad 25: tensors that a checkpoint lacked were drawn at random, with a warning at most.

    Right: a missing tensor, or one of another shape, is refused by name.
    """
    model = model_copy(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    name = next(key for key in weights if key.endswith("self_attn.q_proj.weight") and "vision" not in key)
    whole = weights.pop(name)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    refused(model, "1 of its tensors are not there")
    save_file({**weights, name: whole[:-1].contiguous()}, model / "model.safetensors", metadata={"format": "pt"})
    refused(model, "1 of its tensors have other shapes")


def test_the_same_weights_in_several_files(own_home: Path) -> None:
    """pytorch/ao PR 3073 from its other side: a cache that looks at paths does not know a copy of the same model.

    Right: weights cut into shards are the same model, of which everything is known; a lost shard is named.
    """
    model = own_home / "model"
    whole = tiny(model)
    shards = model_copy(own_home / "shards")
    (shards / "model.safetensors").unlink()
    whole.model.save_pretrained(shards, max_shard_size="4MB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    assert hash_parameters(tiny(shards).model) == hash_parameters(whole.model)
    again = job(own_home, f"model.path={shards}", "data.eval_samples=8", into="sharded")
    assert work_done(again) == (0, 0)
    assert answers(again, 1) == answers(own_home / "multirun" / "field" / "plain", 1)
    lost = sorted(shards.glob("*.safetensors"))[1]
    lost.unlink()
    refused(shards, lost.name)


def test_a_processor_without_chat_template(tmp_path: Path) -> None:
    """lmms-eval 661 and llama-cookbook 933: a processor without chat template, and a traceback when the run asked.

    Right: one line says that the processor has none.
    """
    model = model_copy(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="has no chat template") as caught:
        tiny(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("in_template", [False, True])
def test_one_token_opens_a_text(in_template: bool) -> None:
    """NeMo RL 855 and vllm PR 27515: template and tokenizer both wrote the opening token, and models saw it twice.

    Right: a sequence begins with one, whichever of the two writes it, in training and in evaluation.
    """
    lmm = tiny_lmm("llava_next")
    tokenizer = lmm.processor.tokenizer
    if in_template:
        lmm.processor.chat_template = "{{ '<|begin_of_text|>' }}" + lmm.processor.chat_template
    for taught in (None, ["yes"]):
        encoded = lmm.family.encode_batch(lmm.processor, ["What?"], [[picture()]], taught)
        ids = encoded.tensors["input_ids"][0].tolist()
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


def test_the_side_that_a_tokenizer_pads_on(shared_home: Path, tmp_path: Path) -> None:
    """MiniGPT-4 48: with a tokenizer that pads on the right, batched answers were wrong but for the longest question.

    Right: prompts are padded on the left whatever the folder says.
    """
    model = model_copy(tmp_path / "model")
    edit_json(model / "tokenizer_config.json", padding_side="right")
    rows = [json.loads(line) for line in (shared_home / "data.jsonl").read_text().splitlines()][:6]
    for i, row in enumerate(rows):
        row |= {"question": "Which colour is it? " * (1 + i % 3), "image": str(shared_home / row["image"])}
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    together = said(tiny(model), tmp_path / "data.jsonl", eval_batch=6)
    assert together == said(tiny(model), tmp_path / "data.jsonl", eval_batch=1)


def test_generation_settings_of_the_checkpoint_do_not_sample(shared_home: Path, tmp_path: Path) -> None:
    """lmms-eval 465 and lighteval 559: a checkpoint's or task's sampling settings made evaluations random.

    Right: sampling, beams, penalties and least lengths that come with a checkpoint are set aside.
    """
    model = model_copy(tmp_path / "model")
    before = said(tiny(model), shared_home / "data.jsonl", limit=6)
    edit_json(
        model / "generation_config.json",
        do_sample=True,
        temperature=5.0,
        repetition_penalty=3.0,
        min_length=200,
        num_beams=2,
        max_length=3,
        bad_words_ids=[[10]],
        suppress_tokens=[20, 21, 22, 23],
    )
    torch.manual_seed(1)
    assert said(tiny(model), shared_home / "data.jsonl", limit=6) == before
