"""Components by identity, and the proof that `unused` is right: a real backward pass through each family."""

from __future__ import annotations

import pytest
import torch

import lmm_forget
from lmm_forget.errors import ConfigError
from lmm_forget.models.components import COMPONENTS
from lmm_forget.models.loading import LMM
from lmm_forget.models.registry import resolve_family
from tests.models.tiny import FAMILIES, picture, tiny_lmm

VARIANTS = [
    *((family, {}) for family in FAMILIES),
    ("llava_onevision", {"tie_word_embeddings": True}),
    ("qwen2_5_vl", {"tie_word_embeddings": True}),
    ("llava_onevision", {"vision": {"vision_use_head": True}}),
    ("llava_onevision", {"vision_feature_layer": -2, "vision_layers": 3}),
    ("llava_onevision", {"vision_feature_layer": 1, "vision_layers": 3}),
    ("llava_next", {"vision_feature_layer": -1}),
    ("llava_next", {"vision_feature_layer": [-3, -2], "vision_layers": 4}),
]


def backward(lmm: LMM) -> None:
    """One loss over a square and a wide picture, so that tiles, their base view and padding all take part."""
    encoded = lmm.family.encode_batch(
        lmm.processor, ["What is it?", "And this?"], [[picture()], [picture(112, 56, 1)]], ["a bird", "no"]
    )
    lmm.model(**encoded.tensors, labels=encoded.labels).loss.backward()


@pytest.mark.parametrize(("family", "config"), VARIANTS)
def test_exactly_the_unused_parameters_get_no_gradient(family: str, config: dict) -> None:
    lmm = tiny_lmm(family, **config)
    backward(lmm)
    without = {name for name, p in lmm.model.named_parameters() if p.grad is None}
    assert {i.name for i in lmm.components if i.is_unused} == without


@pytest.mark.parametrize(("family", "config"), VARIANTS)
def test_components_partition_all_parameters(family: str, config: dict) -> None:
    lmm = tiny_lmm(family, **config)
    assert [i.name for i in lmm.components] == [name for name, _ in lmm.model.named_parameters()]
    assert {i.component for i in lmm.components} <= set(COMPONENTS)
    for info in lmm.components:
        p = lmm.model.get_parameter(info.name)
        assert (info.shape, info.numel, info.dtype) == (tuple(p.shape), p.numel(), p.dtype)
    others = [i.name for i in lmm.components if i.component == "other"]
    assert others == ([] if family == "qwen2_5_vl" else ["model.image_newline"])


@pytest.mark.parametrize("family", FAMILIES)
def test_components_agree_with_the_modules(family: str) -> None:
    lmm = tiny_lmm(family)
    modules = {
        "llava_onevision": ("model.vision_tower", "model.multi_modal_projector"),
        "llava_next": ("model.vision_tower", "model.multi_modal_projector"),
        "qwen2_5_vl": ("model.visual", "model.visual.merger"),
    }[family]
    tower, projector = ({id(p) for p in lmm.model.get_submodule(path).parameters()} for path in modules)
    language = {
        id(p) for path in ("model.language_model", "lm_head") for p in lmm.model.get_submodule(path).parameters()
    }
    found = {c: {id(lmm.model.get_parameter(i.name)) for i in lmm.components if i.component == c} for c in COMPONENTS}
    assert found["projector"] == projector
    assert found["vision"] == tower - projector
    assert found["language"] == language
    assert lmm.components.text_model is lmm.model.model.language_model


@pytest.mark.parametrize("family", FAMILIES)
def test_language_layers_have_the_seven_sublayers(family: str) -> None:
    lmm = tiny_lmm(family, num_hidden_layers=3)
    assert lmm.components.num_language_layers == 3
    for layer in range(3):
        inside = {i.sublayer for i in lmm.components if i.component == "language" and i.layer == layer}
        assert inside == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm"}
    outside = {i.sublayer for i in lmm.components if i.component == "language" and i.layer is None}
    assert outside == {"embedding", "norm", "lm_head"}


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_a_tied_head_is_one_parameter(family: str) -> None:
    lmm = tiny_lmm(family, tie_word_embeddings=True)
    assert lmm.model.lm_head.weight is lmm.model.get_input_embeddings().weight
    assert "lm_head" not in {i.sublayer for i in lmm.components}
    assert [i.sublayer for i in lmm.components if i.component == "language"].count("embedding") == 1


def test_substrings_of_names_reach_into_the_towers_and_components_do_not() -> None:
    """A rule such as "the name contains self_attn.q_proj" is what a first attempt looks like; it trains the tower."""

    def by_substring(lmm: LMM, *parts: str) -> set[str]:
        return {name for name, _ in lmm.model.named_parameters() if any(part in name for part in parts)}

    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    for family in ("llava_onevision", "llava_next"):
        lmm = tiny_lmm(family)
        plan = lmm_forget.tune(lmm.model, "sa_proj")
        extra = by_substring(lmm, *attention) - set(plan.trainable)
        assert extra and {lmm.components[name].component for name in extra} == {"vision"}
        assert {lmm.components[name].sublayer for name in extra} == {"q_proj", "k_proj", "v_proj"}
        assert {lmm.components[name].component for name in plan.trainable} == {"language"}
    lmm = tiny_lmm("qwen2_5_vl")
    plan = lmm_forget.tune(lmm.model, "mlp_gateup")
    extra = by_substring(lmm, "mlp.gate_proj", "mlp.up_proj") - set(plan.trainable)
    assert extra and {lmm.components[name].component for name in extra} == {"vision"}
    assert {lmm.components[name].component for name in plan.trainable} == {"language"}


def test_modules_that_are_no_supported_model_are_refused() -> None:
    lmm = tiny_lmm("llava_onevision")
    with pytest.raises(ConfigError, match="LlavaOnevisionForConditionalGeneration"):
        resolve_family(lmm.model).map_components(lmm.model.model)
    with pytest.raises(
        ConfigError, match="qwen2' is not supported; supported: llava_next, llava_onevision, qwen2_5_vl"
    ):
        lmm_forget.tune(lmm.model.model.language_model)


def test_mapping_is_found_again_after_parameters_are_replaced_in_place() -> None:
    lmm = tiny_lmm("llava_onevision", dtype=torch.bfloat16)
    assert {i.dtype for i in lmm.components} == {torch.bfloat16}
    lmm.model.float()
    assert {i.dtype for i in lmm.family.map_components(lmm.model)} == {torch.float32}
