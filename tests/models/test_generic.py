"""Models without a family of their own: mapped by module identity, checked by autograd, refused with a list."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

import lmm_forget
from lmm_forget.errors import ConfigError
from lmm_forget.models.chat import find_answer_prefix
from lmm_forget.models.components import COMPONENTS
from lmm_forget.models.family import IGNORE_INDEX
from lmm_forget.models.generic_family import GenericFamily
from lmm_forget.models.loading import LMM, assemble_model, build_meta_model_from_spec, load_model
from lmm_forget.models.part_detection import map_model_parts
from lmm_forget.models.registry import resolve_family
from lmm_forget.models.weight_hashes import hash_parameters
from tests.models.others import OTHERS, other_lmm, other_processor
from tests.models.tiny import FAMILIES, picture, tiny_lmm

# Decoder, tower, layers of the tower, projectors: read off the modelling files by a person.
BY_HAND = {
    "qwen3_vl": (
        "model.language_model",
        "model.visual",
        "model.visual.blocks",
        {"model.visual.merger", "model.visual.deepstack_merger_list"},
    ),
    "internvl": (
        "model.language_model",
        "model.vision_tower",
        "model.vision_tower.encoder.layer",
        {"model.multi_modal_projector"},
    ),
    "idefics3": (
        "model.text_model",
        "model.vision_model",
        "model.vision_model.encoder.layers",
        {"model.connector"},
    ),
    "gemma3": (
        "model.language_model",
        "model.vision_tower",
        "model.vision_tower.encoder.layers",
        {"model.multi_modal_projector"},
    ),
}
PROMPTS = {
    "qwen3_vl": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|>{slots}<|vision_end|>How many?<|im_end|>\n<|im_start|>assistant\n",
        "two<|im_end|>",
    ),
    "internvl": (
        "<|im_start|>user\n<img>{slots}</img>\nHow many?<|im_end|>\n<|im_start|>assistant\n",
        "two<|im_end|>",
    ),
    "idefics3": (None, " two<end_of_utterance>"),
    "gemma3": (
        "<bos><start_of_turn>user\n\n\n<start_of_image>{slots}<end_of_image>\n\nHow many?<end_of_turn>\n"
        "<start_of_turn>model\n",
        "two<end_of_turn>",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_parts_are_those_a_person_finds_in_the_modelling_file(kind: str) -> None:
    lmm = other_lmm(kind)
    decoder, tower, layers, projectors = BY_HAND[kind]
    parts, get = lmm.components.parts, lmm.model.get_submodule
    assert lmm.family.name == "generic"
    assert (parts.text_model, parts.tower, parts.tower_layers) == (get(decoder), get(tower), get(layers))
    assert set(parts.projectors) == {get(name) for name in projectors}
    assert parts.lm_head is lmm.model.lm_head and parts.language_layers is get(decoder).layers
    assert {i.component for i in lmm.components} == set(COMPONENTS) - {"other"}
    inside = {id(p) for module in parts.projectors for p in module.parameters()}
    found = {id(lmm.model.get_parameter(i.name)) for i in lmm.components if i.component == "projector"}
    assert found == inside


@pytest.mark.parametrize("kind", OTHERS)
def test_the_answer_and_its_end_are_what_is_taught(kind: str) -> None:
    lmm = other_lmm(kind)
    encoded = lmm.family.encode_batch(
        lmm.processor, ["How many?", "b", "c"], [[picture()], [picture(112, 56)], []], ["two"] * 3
    )
    assert encoded.labels is not None
    decode = lmm.processor.tokenizer.decode
    prompt, answer = PROMPTS[kind]
    for row, labels, length in zip(encoded.tensors["input_ids"], encoded.labels, encoded.lengths, strict=True):
        at = (labels != IGNORE_INDEX).nonzero().flatten()
        assert decode(labels[at]) == answer and at[-1] == length - 1
        assert torch.equal(row[at], labels[at])
    first = decode(encoded.tensors["input_ids"][0, : encoded.lengths[0]])
    slot = decode([lmm.model.config.image_token_id])
    assert len(re.findall(re.escape(slot), first)) == (20 if kind == "idefics3" else 4)
    if prompt is not None:
        assert first == prompt.replace("{slots}", slot * 4) + answer
    else:
        assert first.startswith("<|im_start|>User:<fake_token") and first.endswith(
            "How many?<end_of_utterance>\nAssistant: two<end_of_utterance>"
        )


def test_only_spaces_open_an_answer() -> None:
    assert find_answer_prefix(other_processor("idefics3")) == " "
    assert {find_answer_prefix(other_processor(kind)) for kind in OTHERS if kind != "idefics3"} == {""}
    thinking = other_processor("qwen3_vl")
    thinking.chat_template = thinking.chat_template.replace(
        "{% elif content['type'] == 'text' %}",
        "{% elif content['type'] == 'text' %}{% if message['role'] == 'assistant' %}<think></think>{% endif %}",
    )
    assert find_answer_prefix(thinking) == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_known_families_are_mapped_the_same_without_their_files(family: str) -> None:
    """OneVision and NeXT read a hidden state in front of the last norm, which is all that their files add."""
    lmm = tiny_lmm(family)
    known, found = lmm.components.parts, map_model_parts(lmm.model)
    same = ("text_model", "lm_head", "tower", "projectors", "language_layers", "tower_layers")
    assert all(getattr(known, name) == getattr(found, name) for name in same)


def test_autograd_refuses_a_map_that_is_wrong() -> None:
    """LLaVA-OneVision without its own file: there, `vision_feature_layer` -1 is not the tower's last output."""
    lmm = tiny_lmm("llava_onevision")
    family = GenericFamily(lmm.model.config)
    before = hash_parameters(lmm.model), [p.requires_grad for p in lmm.model.parameters()]
    with pytest.raises(
        ConfigError, match="through 2 of its tensors .*post_layernorm.weight.*tower model.vision_tower"
    ) as error:
        family.verify_components(lmm.model, lmm.processor, family.map_components(lmm.model))
    assert "\n" not in str(error.value)
    assert (hash_parameters(lmm.model), [p.requires_grad for p in lmm.model.parameters()]) == before
    assert not lmm.components.text_model._forward_pre_hooks
    # NeXT says in its configuration that it reads the state before the last layer, which is enough.
    other = tiny_lmm("llava_next")
    family = GenericFamily(other.model.config)
    family.verify_components(other.model, other.processor, family.map_components(other.model))


def test_an_earlier_feature_layer_leaves_the_rest_of_the_tower_unused() -> None:
    lmm = other_lmm("internvl", feature_layer=1)
    unused = {i.name for i in lmm.components if i.is_unused}
    assert unused and all(name.startswith("model.vision_tower.encoder.layer.1.") for name in unused)


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_saved_is_loaded_bit_for_bit(kind: str, tmp_path: Path) -> None:
    lmm = other_lmm(kind, dtype=torch.bfloat16)
    lmm.model.save_pretrained(tmp_path)
    lmm.processor.save_pretrained(tmp_path)
    again = load_model({"path": str(tmp_path), "family": "generic", "attention": "eager", "image": {"max_tiles": None}})
    assert hash_parameters(again.model) == hash_parameters(lmm.model)
    assert again.end_token_ids == lmm.end_token_ids
    batches = [
        x.family.encode_batch(x.processor, ["what?"], [[picture(100, 50)]], ["it"]).tensors for x in (lmm, again)
    ]
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0] | batches[1])
    meta = build_meta_model_from_spec({"path": str(tmp_path)})
    plans = [lmm_forget.tune(model, "sa_proj").parameter_counts for model in (meta, again.model)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("kind", "image", "fewer"),
    [("qwen3_vl", {"max_pixels": 28 * 28}, True), ("internvl", {"max_tiles": 1}, True)],
)
def test_image_budgets_where_the_processor_has_them(kind: str, image: dict[str, int], fewer: bool) -> None:
    lmm = other_lmm(kind)
    count = lambda: lmm.family.encode_batch(lmm.processor, ["?"], [[picture(168, 56)]]).lengths[0]  # noqa: E731
    before = count()
    lmm.family.apply_image_limits(lmm.model.config, lmm.processor, image)
    assert (count() < before) is fewer


@pytest.mark.parametrize(("kind", "image"), [("gemma3", {"max_pixels": 9999}), ("idefics3", {"max_tiles": 1})])
def test_image_budgets_where_the_processor_has_none_are_refused(kind: str, image: dict[str, int]) -> None:
    lmm = other_lmm(kind)
    with pytest.raises(ConfigError, match=f"model.image.{next(iter(image))}: .* has no such bound"):
        lmm.family.apply_image_limits(lmm.model.config, lmm.processor, image)


def small(model_type: str, **config: Any) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **config))


@pytest.mark.parametrize(
    ("model_type", "found"),
    [
        ("idefics2", "beside its decoder it has vision_config, perceiver_config, not one vision tower"),
        ("florence2", "it has an encoder and a decoder of text"),
        ("git", r"it has no decoder; found: git \(GitModel, 153.1 M parameters\), output \(Linear"),
        ("fuyu", "beside its decoder it has no part, not one vision tower"),
    ],
)
def test_models_of_another_build_are_refused_with_what_was_found(model_type: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found) as error:
        model = small(model_type)
        resolve_family(model).map_components(model)
    assert "\n" not in str(error.value)


def test_a_second_module_between_tower_and_decoder_is_refused() -> None:
    lmm = other_lmm("gemma3")
    lmm.model.model.resampler = nn.Linear(4, 4)
    expected = (
        r"more than one module is between tower and decoder; found: model.multi_modal_projector "
        r"\(Gemma3MultiModalProjector, 0.0 M parameters\), model.resampler \(Linear, 0.0 M parameters\)"
    )
    with pytest.raises(ConfigError, match=expected):
        resolve_family(lmm.model).map_components(lmm.model)


def test_a_processor_that_does_not_fit_is_refused() -> None:
    lmm = other_lmm("internvl")
    lmm.processor.image_seq_length = 9
    with pytest.raises(ConfigError, match="cannot take what its processor makes of an image: .*do not match"):
        assemble_model(lmm.model, lmm.processor, {})


def test_per_token_keys_of_unknown_meaning_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lmm: LMM = other_lmm("gemma3")
    call = type(lmm.processor).__call__

    def more(self: Any, *args: Any, **options: Any) -> Any:
        made = call(self, *args, **options)
        return {**made, "mystery_ids": torch.zeros_like(made["input_ids"])}

    monkeypatch.setattr(type(lmm.processor), "__call__", more)
    with pytest.raises(ConfigError, match="returns 'mystery_ids' per token"):
        lmm.family.encode_batch(lmm.processor, ["a"], [[picture()]], ["b"])
