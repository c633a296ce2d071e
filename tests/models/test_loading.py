"""Loading from disk, and the packaged architectures on the meta device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lmm_forget.errors import ConfigError
from lmm_forget.models.family import limit_pixels
from lmm_forget.models.loading import (
    LMM,
    build_meta_model,
    build_meta_model_from_spec,
    list_architectures,
    load_model,
)
from lmm_forget.models.registry import resolve_family
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.recipes.selection import load_recipe, make_tune_plan, parse_rules
from tests.models.tiny import FAMILIES, picture, tiny_lmm, tiny_processor

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
    again = load_model(
        {
            "path": str(saved(lmm, tmp_path)),
            "dtype": "auto",
            "attention": "eager",
            "family": family,
            "image": {},
        }
    )
    assert hash_parameters(again.model) == hash_parameters(lmm.model)
    assert again.family.name == family and not again.model.training
    assert again.end_token_ids == lmm.end_token_ids
    assert again.model.config._attn_implementation == "eager"
    assert [i.name for i in again.components] == [i.name for i in lmm.components]
    texts, pictures = ["what?"], [[picture(100, 50)]]
    first, second = (x.family.encode_batch(x.processor, texts, pictures, ["it"]).tensors for x in (lmm, again))
    assert set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first)
    assert load_model({"path": str(tmp_path), "dtype": "float32"}).model.dtype == torch.float32


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
        lmm = load_model({"path": str(folder), "image": budget})
        encoded = lmm.family.encode_batch(lmm.processor, ["?"], wide, ["x"])
        assert torch.isfinite(lmm.model(**encoded.tensors, labels=encoded.labels).loss)
        lengths += encoded.lengths
    assert lengths[1] < lengths[0]
    with pytest.raises(ConfigError, match="model.image.tokens is unknown to"):
        load_model({"path": str(folder), "image": {"tokens": 3}})


def test_a_budget_without_any_tile_is_refused(tmp_path: Path) -> None:
    folder = saved(tiny_lmm("llava_onevision"), tmp_path)
    with pytest.raises(ConfigError, match="max_tiles=0 leaves no grid; the smallest has 1 tiles"):
        load_model({"path": str(folder), "image": {"max_tiles": 0}})


@pytest.mark.parametrize(
    ("image", "line"),
    [
        ({"min_pixels": 28 * 28 * 8}, "min_pixels is 6272 and max_pixels 3136"),
        ({"max_pixels": 100}, "max_pixels 100; they have to rise from 784, one token"),
    ],
)
def test_pixel_budgets_that_contradict_themselves_are_refused(image: dict, line: str) -> None:
    processor = tiny_processor("qwen2_5_vl")
    processor.image_processor.size["longest_edge"] = 28 * 28 * 4
    with pytest.raises(ConfigError, match=line):
        limit_pixels(processor, image)


def test_a_larger_smallest_picture_takes_more_tokens(tmp_path: Path) -> None:
    folder = saved(tiny_lmm("qwen2_5_vl"), tmp_path)
    lmm = load_model({"path": str(folder), "image": {"min_pixels": 28 * 28 * 9, "max_pixels": None}})
    slots = lmm.family.encode_batch(lmm.processor, ["?"], [[picture()]]).tensors["input_ids"]
    assert (slots == lmm.processor.image_token_id).sum() == 9  # 56 x 56 pixels alone would be 4


def damaged(kind: str, folder: Path) -> str:
    """A checkpoint folder that cannot be used, and what the refusal has to say."""
    family = {"tile size": "llava_next", "patch size": "qwen2_5_vl"}.get(kind, "llava_onevision")
    lmm = tiny_lmm(family)
    config = folder / "config.json"
    if kind in ("missing shard", "cut shard"):
        saved(lmm, folder, max_shard_size="60KB")
        shards = sorted(folder.glob("model-*.safetensors"))
        assert len(shards) > 2
        if kind == "missing shard":
            shards[1].unlink()
            return rf"No such file or directory: .*{shards[1].name}; copy the whole checkpoint again"
        shards[1].write_bytes(shards[1].read_bytes()[:-100])
        return "incomplete metadata.*; copy the whole checkpoint again"
    saved(lmm, folder)
    text = json.loads(config.read_text())
    if kind == "pickled":
        torch.save(lmm.model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        return r"are pickled \(pytorch_model.bin\); only safetensors are read"
    if kind == "another architecture":
        save_file({"bert.weight": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
        return "are not those of the LlavaOnevisionForConditionalGeneration .* of its tensors are not there"
    if kind == "another size":
        text["text_config"]["intermediate_size"] += 1
        config.write_text(json.dumps(text))
        return "6 of its tensors have other shapes there, such as .*mlp.down_proj.weight"
    if kind == "own code":
        text |= {"model_type": "mystery", "auto_map": {"AutoConfig": "mystery.Config"}}
        config.write_text(json.dumps(text))
        return "needs Python code that comes with it .*never run"
    if kind == "another processor":
        tiny_processor("llava_next").save_pretrained(folder)
        return "is a LlavaNextProcessor, a llava_onevision model needs a LlavaOnevisionProcessor"
    if kind == "no processor":
        (folder / "processor_config.json").unlink()
        return "the processor in .* cannot be loaded: "
    if kind == "image token":
        text["image_token_index"] = 5
        config.write_text(json.dumps(text))
        return "its image token id is 259, the model's is 5"
    if kind == "vocabulary":
        tokenizer = lmm.processor.tokenizer
        tokenizer.add_tokens(["one", "two"])
        tokenizer.save_pretrained(folder)
        return "its largest token id is 262, the model's is 260"
    if kind == "tile size":
        tiny_processor("llava_next", tile=112).save_pretrained(folder)
        return "its tile size is 112, the model's is 56"
    assert kind == "patch size"
    lmm.processor.image_processor.patch_size = 16
    lmm.processor.save_pretrained(folder)
    return "its patch_size is 16, the model's is 14"


@pytest.mark.parametrize(
    "kind",
    [
        "missing shard",
        "cut shard",
        "pickled",
        "another architecture",
        "another size",
        "own code",
        "another processor",
        "no processor",
        "image token",
        "vocabulary",
        "tile size",
        "patch size",
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = damaged(kind, tmp_path)
    capsys.readouterr()
    with pytest.raises(ConfigError, match=expected) as error:
        load_model({"path": str(tmp_path)})
    one_line(error)
    assert "LOAD REPORT" not in capsys.readouterr().err


def test_each_way_a_model_can_be_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is not a model folder: it has no config.json"):
        load_model({"path": str(tmp_path)})
    with pytest.raises(ConfigError, match="no packaged model 'nope'; packaged: "):
        load_model({"path": "package:nope"})
    with pytest.raises(ConfigError, match="has neither `path` nor `hub_id`"):
        load_model({"name": "x", "path": None, "hub_id": None})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="set model.path to a local copy") as error:
        load_model({"hub_id": "nobody/has-this", "revision": None, "path": None})
    assert "nobody/has-this" in one_line(error) and "(HF_HUB_OFFLINE is set)" in one_line(error)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def no_network(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.\nTry again.")

    monkeypatch.setattr("lmm_forget.models.loading.AutoConfig.from_pretrained", no_network)
    with pytest.raises(
        ConfigError, match=r"fetched .* \(We couldn't connect .* load the files.\); set model.path"
    ) as error:
        load_model({"hub_id": "nobody/has-this", "revision": None, "path": None})
    one_line(error)
    monkeypatch.undo()
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ConfigError, match="cannot be loaded") as error:
        load_model({"path": str(tmp_path)})
    one_line(error)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="model type 'bert' is not supported"):
        load_model({"path": str(tmp_path)})


def test_a_model_that_is_not_what_the_config_says_is_refused(tmp_path: Path) -> None:
    saved(tiny_lmm("llava_next"), tmp_path)
    with pytest.raises(ConfigError, match="model.family=qwen2_5_vl, but the model in .* is a llava_next"):
        load_model({"path": str(tmp_path), "family": "qwen2_5_vl"})
    with pytest.raises(ConfigError, match="model.dtype=float33 is not a torch dtype"):
        load_model({"path": str(tmp_path), "dtype": "float33"})


@pytest.mark.parametrize("architecture", sorted(SIZES))
def test_real_sizes_on_the_meta_device(architecture: str) -> None:
    model = build_meta_model(architecture)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    components = resolve_family(model).map_components(model)
    for recipe, millions in SIZES[architecture].items():
        plan = make_tune_plan(components, recipe, parse_rules(load_recipe(recipe)))
        assert round(plan.parameter_counts["trainable"] / 1e6) == millions, recipe
        assert plan.delta_bytes == 2 * plan.parameter_counts["trainable"]
        assert sum(plan.parameter_counts.values()) == sum(p.numel() for p in model.parameters())


def test_llava_next_has_the_size_of_llama_3_beside_its_padded_vocabulary() -> None:
    model = build_meta_model("llava_next_8b")
    language = sum(i.numel for i in resolve_family(model).map_components(model) if i.component == "language")
    padding = 2 * 4096 * (model.config.text_config.vocab_size - 128256)
    assert round((language - padding) / 1e6) == 8030


def test_packaged_architectures_are_the_five_real_ones() -> None:
    assert list_architectures() == sorted(SIZES)
    with pytest.raises(ConfigError, match="choose one of: llava_next_8b, "):
        build_meta_model("nope")


def test_a_skeleton_follows_a_local_model_before_the_packaged_architecture(tmp_path: Path) -> None:
    lmm = tiny_lmm("llava_next", dtype=torch.bfloat16)
    model = build_meta_model_from_spec({"path": str(saved(lmm, tmp_path)), "architecture": "llava_next_8b"})
    shapes = {name: (p.shape, p.dtype) for name, p in model.named_parameters()}
    assert shapes == {name: (p.shape, p.dtype) for name, p in lmm.model.named_parameters()}
    with pytest.raises(ConfigError, match="has neither `path` nor `architecture`"):
        build_meta_model_from_spec({"name": "x"})
