"""Loading from disk, and the packaged architectures on the meta device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lmm_forget.errors import ConfigError
from lmm_forget.models.family import family_for
from lmm_forget.models.loading import LMM, architectures, load, skeleton, skeleton_for
from lmm_forget.models.weights import model_hashes
from lmm_forget.recipes.selection import load_recipe, make_plan, rules_from_config
from tests.models.tiny import FAMILIES, picture, tiny_lmm

# Millions of trainable parameters: dimensions of Qwen2-7B and Llama-3-8B, as the paper's sources use them.
SIZES = {
    "llava_onevision_7b": {
        "sa_proj": 822,
        "sa_qkv": 463,
        "mlp": 5703,
        "mlp_gateup": 3802,
        "mlp_down": 1901,
        "llm": 7616,
    },
    "qwen2_5_vl_7b": {"sa_proj": 822, "sa_qkv": 463, "mlp": 5703, "mlp_gateup": 3802, "llm": 7616},
    "llava_next_8b": {"sa_proj": 1342, "sa_qkv": 805, "mlp": 5637, "mlp_gateup": 3758},
    # Without the shared head: Qwen2-0.5B has 494 M and Qwen2.5-3B 3,086 M parameters.
    "llava_onevision_0_5b": {"llm": 494},
    "qwen2_5_vl_3b": {"llm": 3086},
}


def saved(lmm: LMM, folder: Path, **options: object) -> Path:
    lmm.model.save_pretrained(folder, **options)
    lmm.processor.save_pretrained(folder)
    return folder


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_loaded_bit_for_bit(family: str, tmp_path: Path) -> None:
    lmm = tiny_lmm(family, dtype=torch.bfloat16)
    again = load(
        {
            "path": str(saved(lmm, tmp_path)),
            "dtype": "auto",
            "attention": "eager",
            "family": family,
            "image": {},
        }
    )
    assert model_hashes(again.model) == model_hashes(lmm.model)
    assert again.family.name == family and not again.model.training
    assert again.end_token_ids == lmm.end_token_ids
    assert again.model.config._attn_implementation == "eager"
    assert [i.name for i in again.components] == [i.name for i in lmm.components]
    texts, pictures = ["what?"], [[picture(100, 50)]]
    first, second = (x.family.encode(x.processor, texts, pictures, ["it"]).batch for x in (lmm, again))
    assert set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first)
    assert load({"path": str(tmp_path), "dtype": "float32"}).model.dtype == torch.float32


@pytest.mark.parametrize(
    ("family", "image"),
    [
        ("llava_onevision", {"max_tiles": 1}),
        ("llava_next", {"max_tiles": 1}),
        ("qwen2_5_vl", {"max_pixels": 28 * 28 * 2, "min_pixels": None}),
    ],
)
def test_the_image_budget_reaches_model_and_processor(family: str, image: dict, tmp_path: Path) -> None:
    folder = saved(tiny_lmm(family), tmp_path)
    wide = [[picture(168, 84)]]
    lengths = []
    for budget in ({}, image):
        lmm = load({"path": str(folder), "image": budget})
        encoded = lmm.family.encode(lmm.processor, ["?"], wide, ["x"])
        assert torch.isfinite(lmm.model(**encoded.batch, labels=encoded.labels).loss)
        lengths += encoded.lengths
    assert lengths[1] < lengths[0]
    with pytest.raises(ConfigError, match="model.image.tokens is unknown to"):
        load({"path": str(folder), "image": {"tokens": 3}})


def test_a_budget_without_any_tile_is_refused(tmp_path: Path) -> None:
    folder = saved(tiny_lmm("llava_onevision"), tmp_path)
    with pytest.raises(ConfigError, match="max_tiles=0 leaves no grid; the smallest has 1 tiles"):
        load({"path": str(folder), "image": {"max_tiles": 0}})


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    lmm = tiny_lmm("llava_onevision")
    saved(lmm, tmp_path)
    torch.save(lmm.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot be loaded") as error:
        load({"path": str(tmp_path)})
    assert "safetensors" in one_line(error)


def test_each_way_a_model_can_be_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is not a model folder: it has no config.json"):
        load({"path": str(tmp_path)})
    with pytest.raises(ConfigError, match="no packaged model 'nope'; packaged: "):
        load({"path": "package:nope"})
    with pytest.raises(ConfigError, match="has neither `path` nor `hub_id`"):
        load({"name": "x", "path": None, "hub_id": None})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="set model.path to a local copy") as error:
        load({"hub_id": "nobody/has-this", "revision": None, "path": None})
    assert "nobody/has-this" in one_line(error)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ConfigError, match="cannot be loaded") as error:
        load({"path": str(tmp_path)})
    one_line(error)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="model type 'bert' is not supported"):
        load({"path": str(tmp_path)})


def test_a_model_that_is_not_what_the_config_says_is_refused(tmp_path: Path) -> None:
    saved(tiny_lmm("llava_next"), tmp_path)
    with pytest.raises(ConfigError, match="model.family=qwen2_5_vl, but the model in .* is a llava_next"):
        load({"path": str(tmp_path), "family": "qwen2_5_vl"})
    with pytest.raises(ConfigError, match="model.dtype=float33 is not a torch dtype"):
        load({"path": str(tmp_path), "dtype": "float33"})


@pytest.mark.parametrize("architecture", sorted(SIZES))
def test_real_sizes_on_the_meta_device(architecture: str) -> None:
    model = skeleton(architecture)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    components = family_for(model).components(model)
    for recipe, millions in SIZES[architecture].items():
        plan = make_plan(components, recipe, rules_from_config(load_recipe(recipe)))
        assert round(plan.counts["trainable"] / 1e6) == millions, recipe
        assert plan.delta_bytes == 2 * plan.counts["trainable"]
        assert sum(plan.counts.values()) == sum(p.numel() for p in model.parameters())


def test_llava_next_has_the_size_of_llama_3_beside_its_padded_vocabulary() -> None:
    model = skeleton("llava_next_8b")
    language = sum(i.numel for i in family_for(model).components(model) if i.component == "language")
    padding = 2 * 4096 * (model.config.text_config.vocab_size - 128256)
    assert round((language - padding) / 1e6) == 8030


def test_packaged_architectures_are_the_five_real_ones() -> None:
    assert architectures() == sorted(SIZES)
    with pytest.raises(ConfigError, match="choose one of: llava_next_8b, "):
        skeleton("nope")


def test_a_skeleton_follows_a_local_model_before_the_packaged_architecture(tmp_path: Path) -> None:
    lmm = tiny_lmm("llava_next", dtype=torch.bfloat16)
    model = skeleton_for({"path": str(saved(lmm, tmp_path)), "architecture": "llava_next_8b"})
    shapes = {name: (p.shape, p.dtype) for name, p in model.named_parameters()}
    assert shapes == {name: (p.shape, p.dtype) for name, p in lmm.model.named_parameters()}
    with pytest.raises(ConfigError, match="has neither `path` nor `architecture`"):
        skeleton_for({"name": "x"})
