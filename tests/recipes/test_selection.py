"""Rules become exact plans, and rules that match nothing are refused with what exists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lmm_forget
from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.recipes.layer_ranges import normalize_layers, parse_layers
from lmm_forget.recipes.selection import SelectionRule, TunePlan, load_recipe, make_tune_plan, parse_rules
from tests.models.tiny import FAMILIES, tiny_lmm

LANGUAGE = "model.language_model.layers."


def plan(family: str, rules: list[SelectionRule], **config: object) -> TunePlan:
    return make_tune_plan(tiny_lmm(family, **config).components, "mine", rules)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", ["full", "llm", "vision", "projector", "sa_proj", "mlp_gateup"])
def test_every_parameter_is_trained_frozen_or_unused_once(family: str, recipe: str) -> None:
    lmm = tiny_lmm(family)
    found = make_tune_plan(lmm.components, recipe, parse_rules(load_recipe(recipe)))
    names = [name for name, _ in lmm.model.named_parameters()]
    assert sorted([*found.trainable, *found.frozen, *found.unused]) == sorted(names)
    sizes = {name: p.numel() for name, p in lmm.model.named_parameters()}
    assert found.parameter_counts == {
        group: sum(sizes[n] for n in getattr(found, group)) for group in ("trainable", "frozen", "unused")
    }


def test_sa_proj_is_weights_and_biases_of_the_decoder_in_model_order() -> None:
    found = plan("llava_onevision", [SelectionRule("language", ("q_proj", "k_proj", "v_proj", "o_proj"))])
    each = [f"{p}.{kind}" for p in ("q_proj", "k_proj", "v_proj") for kind in ("weight", "bias")] + ["o_proj.weight"]
    assert list(found.trainable) == [f"{LANGUAGE}{i}.self_attn.{name}" for i in range(2) for name in each]


def test_recipes_are_what_their_names_say() -> None:
    lmm = tiny_lmm("qwen2_5_vl")
    moved = {}
    for name in (
        "sa_proj",
        "sa_qkv",
        "mlp",
        "mlp_gateup",
        "mlp_down",
        "sa_proj_mlp_gateup",
        "llm",
        "vision",
        "projector",
        "full",
    ):
        node = load_recipe(name)
        assert node["name"] == name and node["layers"] == "all" and node["learning_rate"] is None
        assert node["method"] == {"_target_": "lmm_forget.recipes.plain.Plain"}
        moved[name] = set(make_tune_plan(lmm.components, name, parse_rules(node)).trainable)
    assert moved["mlp"] == moved["mlp_gateup"] | moved["mlp_down"] and not moved["mlp_gateup"] & moved["mlp_down"]
    assert moved["sa_proj"] - moved["sa_qkv"] == {f"{LANGUAGE}{i}.self_attn.o_proj.weight" for i in range(2)}
    assert moved["sa_proj_mlp_gateup"] == moved["sa_proj"] | moved["mlp_gateup"]
    assert moved["full"] == moved["llm"] | moved["vision"] | moved["projector"]
    assert moved["full"] == {name for name, _ in lmm.model.named_parameters()}


def test_bytes_follow_the_precision_rule() -> None:
    lmm = tiny_lmm("llava_next", dtype=torch.bfloat16)
    found = make_tune_plan(lmm.components, "sa_proj", parse_rules(load_recipe("sa_proj")))
    counts = found.parameter_counts
    assert found.delta_bytes == 2 * counts["trainable"]
    assert found.state_bytes == 16 * counts["trainable"] + 2 * (counts["frozen"] + counts["unused"])
    data = found.to_json()
    assert {key: data[key] for key in counts} == counts and counts["unused"] > 0
    assert [(r["component"], r["tensors"], r["parameters"], r["layers"]) for r in data["rules"]] == [
        ("language", len(found.trainable), counts["trainable"], "all")
    ]
    assert data["rules"][0]["names"] == list(found.trainable)


def test_overlapping_rules_move_a_tensor_once() -> None:
    found = plan(
        "llava_next",
        [SelectionRule("language", ("q_proj",)), SelectionRule("language", ("q_proj", "up_proj"), "1")],
    )
    assert found.trainable == (
        f"{LANGUAGE}0.self_attn.q_proj.weight",
        f"{LANGUAGE}1.self_attn.q_proj.weight",
        f"{LANGUAGE}1.mlp.up_proj.weight",
    )
    assert [len(r.parameter_names) for r in found.rule_reports] == [2, 2]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", range(5)),
        ("upper_half", [2, 3, 4]),
        ("lower_half", [0, 1]),
        ("1:3", [1, 2]),
        ("3", [3]),
        ("3:", [3, 4]),
        (":2", [0, 1]),
        ("0,3:5", [0, 3, 4]),
        ("lower_half,4", [0, 1, 4]),
    ],
)
def test_layer_ranges(layers: str, expected: list[int]) -> None:
    assert parse_layers(layers, 5) == set(expected)


@given(st.integers(1, 80))
def test_the_halves_make_up_the_whole(count: int) -> None:
    if count > 1:
        lower, upper = parse_layers("lower_half", count), parse_layers("upper_half", count)
        assert not lower & upper and lower | upper == parse_layers("all", count)
        assert len(upper) - len(lower) in (0, 1) and min(upper) > max(lower)
    assert parse_layers(f"0:{count}", count) == parse_layers("all", count)


@pytest.mark.parametrize("layers", ["5", "2:6", "3:3", "4:2", "-1", "-3:2"])
def test_layers_outside_of_the_model_name_its_range(layers: str) -> None:
    with pytest.raises(PlanError, match=r"does not fit: the model has layers 0 to 4 \(0:5 is all\)$"):
        parse_layers(layers, 5)


@pytest.mark.parametrize("layers", ["foo", "1-3", "1:2:3", "", "1,,2", "1.5"])
def test_layers_that_are_no_range_name_the_forms(layers: str) -> None:
    with pytest.raises(PlanError, match="is not a layer range; write all, upper_half, lower_half, START:STOP"):
        parse_layers(layers, 5)


def test_a_range_that_yaml_read_as_a_base_60_number_is_recognised() -> None:
    with pytest.raises(PlanError, match=r'layers=868 does not fit.*for 14:28 in a YAML file write "14:28"'):
        parse_layers(normalize_layers(868), 28)
    assert [normalize_layers(x) for x in (None, 3, [0, "2:4"], " 1 : 3 ")] == ["all", "3", "0,2:4", "1:3"]


def test_layers_apply_to_the_language_model_and_leave_out_what_is_in_no_layer() -> None:
    node = {**load_recipe("full"), "layers": "upper_half"}
    found = plan("llava_onevision", parse_rules(node), num_hidden_layers=4)
    language = found.get_trainable_names("language")
    assert {found.parameters[n].layer for n in language} == {2, 3}
    assert found.get_trainable_names("vision") == plan(
        "llava_onevision", [SelectionRule("vision")]
    ).get_trainable_names("vision")
    only_vision = plan("llava_onevision", parse_rules({**load_recipe("vision"), "layers": "0"}))
    assert {found.parameters[n].layer for n in only_vision.trainable} == {0}


def test_a_rule_has_its_own_layers_if_it_says_so() -> None:
    attention = {"component": "language", "sublayers": ["q_proj"]}
    mlp = {"component": "language", "sublayers": ["up_proj"], "layers": "0"}
    rules = parse_rules({"name": "mine", "layers": "1", "rules": [attention, mlp, {"component": "vision"}]})
    assert rules == [
        SelectionRule("language", ("q_proj",), "1"),
        SelectionRule("language", ("up_proj",), "0"),
        SelectionRule("vision"),
    ]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            SelectionRule("language", ("z_proj",)),
            "no sublayer 'z_proj' in the language; there are: embedding, q_proj, k_proj",
        ),
        (
            SelectionRule("vision", ("gate_proj",)),
            "no sublayer 'gate_proj' in the vision; there are: embedding, ",
        ),
        (
            SelectionRule("tower"),
            "no component 'tower' that can be trained; there are: vision, projector, language",
        ),
        (SelectionRule("other"), "no component 'other' that can be trained"),
        (
            SelectionRule("language", ("lm_head",), "1"),
            "no 'lm_head' that gets a gradient in these layers, which have: q_proj",
        ),
        (SelectionRule("language", ("q_proj",), "2:9"), "the model has layers 0 to 1"),
        (SelectionRule("projector", None, "0"), "the projector has no layers"),
        (SelectionRule("vision", None, "1"), "nothing in these layers gets a gradient"),
    ],
)
def test_rules_that_match_nothing_say_what_exists(rule: SelectionRule, message: str) -> None:
    with pytest.raises(PlanError, match=message) as error:
        plan("llava_next", [rule])
    assert "\n" not in str(error.value)


def test_malformed_recipes_are_refused() -> None:
    with pytest.raises(PlanError, match="recipe mine has no rules"):
        plan("llava_next", parse_rules({"name": "mine", "rules": []}))
    with pytest.raises(PlanError, match="is not of the form"):
        parse_rules({"name": "mine", "rules": [{"component": "language", "sublayer": "q_proj"}]})
    with pytest.raises(PlanError, match="has no rule with layers, so recipe.layers=1 selects nothing"):
        parse_rules({**load_recipe("projector"), "layers": 1})


def test_tune_sets_requires_grad_and_can_be_called_again() -> None:
    model = tiny_lmm("llava_onevision", num_hidden_layers=4).model
    lmm_forget.tune(model, "full")
    found = lmm_forget.tune(model, "mlp_gateup", layers="3")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(found.trainable)
    assert found.trainable == (f"{LANGUAGE}3.mlp.gate_proj.weight", f"{LANGUAGE}3.mlp.up_proj.weight")
    with pytest.raises(ConfigError, match="there is no recipe 'sa'; choose one of: ewc, full, llm, "):
        lmm_forget.tune(model, "sa")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(found.trainable)
