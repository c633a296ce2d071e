"""What moves is what was asked to move, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmm_forget.cli.plan import main as plan_main
from lmm_forget.errors import LmmForgetError, PlanError
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.recipes.method import build_method, get_parameter_dtypes
from lmm_forget.recipes.selection import SelectionRule, load_recipe, make_tune_plan
from lmm_forget.training.stage_config import TrainStageConfig
from lmm_forget.training.train_stage import train_stage
from tests.models.tiny import tiny_lmm
from tests.recipes.stage_calls import end_stage, start_stage
from tests.training.lesson import HARDWARE, TRAINING, plan_for, samples, teach

HOT = {"training": {"learning_rate": 0.05, "max_steps": 2}, "hardware": {"precision": "fp32"}}


@pytest.mark.parametrize("recipe", ["sa_proj", "mlp_gateup", "projector", "vision", "llm"])
def test_frozen_parts_do_not_move(recipe: str) -> None:
    """LlamaFactory 9399: mergers that the configuration called frozen had been trained; the log said nothing.

    Right: every tensor of the plan moved, every other one is the base's to the bit.
    """
    before = hash_parameters(tiny_lmm("llava_onevision").model)
    lmm, plan, _, delta = teach(recipe, **HOT)
    after = hash_parameters(lmm.model)
    moved = {name for name in before if before[name] != after[name]}
    assert moved == set(plan.trainable) == set(delta)


def test_lora_stays_out_of_the_frozen_tower() -> None:
    """LLaVA 1647: the tower got LoRA adapters although it was frozen, since its layers have the decoder's names.

    Right: adapters sit in the decoder only, though both have a `self_attn.q_proj`.
    """
    lmm = tiny_lmm("llava_onevision")
    method = build_method(load_recipe("lora"))
    plan = method.adapt_plan(lmm.model, plan_for(lmm, "lora"))
    tower = {name for name, _ in lmm.model.named_parameters() if "vision_tower" in name}
    assert any("self_attn.q_proj" in name for name in tower)
    start_stage(method, lmm, plan)
    adapters = [name for name, p in lmm.model.named_parameters() if p.requires_grad]
    assert adapters and all("lora" in name and "vision_tower" not in name for name in adapters)


def test_a_rule_that_matches_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """ms-swift 7226: two runs, with and without the freezing option, trained the same number of parameters.

    Right: a sublayer or a range of layers that selects nothing ends the run, and plans name their counts.
    """
    lmm = tiny_lmm("llava_onevision")
    for rule in (
        SelectionRule("language", ("attn_qkv",)),
        SelectionRule("visual"),
        SelectionRule("language", ("q_proj",), "40:44"),
    ):
        with pytest.raises(LmmForgetError) as caught:
            make_tune_plan(lmm.components, "stale", [rule])
        assert "\n" not in str(caught.value)
    with pytest.raises(PlanError, match="no rules"):
        make_tune_plan(lmm.components, "empty", [])
    counts = set()
    for recipe in ("sa_proj", "mlp_gateup", "full"):
        assert plan_main(["model=tiny_onevision", f"recipe={recipe}", "format=json"]) == 0
        counts.add(capsys.readouterr().out)
    assert len(counts) == 3


def test_a_later_step_does_not_undo_the_freezing() -> None:
    """Megatron-Bridge PR 5991: wrapping the model in adapters froze the vision parts that had been asked to train.

    Right: after a stage with adapters the next stage trains exactly its own plan, and no adapter is left.
    """
    lmm = tiny_lmm("llava_onevision")
    for recipe in ("lora", "vision", "lora", "sa_proj"):
        method, dtypes = build_method(load_recipe(recipe)), get_parameter_dtypes(lmm.model)
        plan = method.adapt_plan(lmm.model, plan_for(lmm, recipe))
        before = hash_parameters(lmm.model)
        start_stage(method, lmm, plan, seed=1)
        training = {n for n, p in lmm.model.named_parameters() if p.requires_grad}
        assert (training == set(plan.trainable)) == (recipe != "lora")
        settings = {**TRAINING, **HOT["training"]}
        hardware = {**HARDWARE, **HOT["hardware"]}
        train_stage(
            lmm,
            plan,
            method,
            samples(),
            TrainStageConfig(training_config=settings, hardware_config=hardware, seed=0, task=recipe),
        )
        end_stage(method, lmm, plan, dtypes)
        after = hash_parameters(lmm.model)
        assert list(after) == list(before), "the model has its own parameters again"
        assert {n for n in before if before[n] != after[n]} == set(plan.trainable)


def test_tied_embeddings_stay_tied() -> None:
    """transformers 45127: head and embeddings that share a tensor came apart in training, and a save lost one of them.

    Right: the shared tensor is counted once, moves once, and head and embeddings are still one tensor afterwards.
    """
    lmm = tiny_lmm("llava_onevision", tie_word_embeddings=True)
    untied = tiny_lmm("llava_onevision")
    shared = untied.model.lm_head.weight.numel()
    assert (
        plan_for(untied, "llm").parameter_counts["trainable"] - plan_for(lmm, "llm").parameter_counts["trainable"]
        == shared
    )
    before = hash_parameters(lmm.model)
    method, dtypes = build_method(load_recipe("llm")), get_parameter_dtypes(lmm.model)
    plan = plan_for(lmm, "llm")
    start_stage(method, lmm, plan)
    settings = {**TRAINING, **HOT["training"]}
    hardware = {**HARDWARE, **HOT["hardware"]}
    train_stage(
        lmm,
        plan,
        method,
        samples(),
        TrainStageConfig(training_config=settings, hardware_config=hardware, seed=0, task="tied"),
    )
    end_stage(method, lmm, plan, dtypes)
    embeddings = lmm.model.get_input_embeddings().weight
    assert lmm.model.lm_head.weight is embeddings
    (name,) = [n for n, p in lmm.model.named_parameters() if p is embeddings]
    assert hash_parameters(lmm.model)[name] != before[name]


def test_an_exported_model_says_what_the_trained_one_said(tmp_path: Path) -> None:
    """LLaVA 1757 and LlamaFactory 9346: a merged and exported LoRA model gave other answers, or garbage.

    Right: the exported folder, asked as a base, says to the letter what the stage model said in its job.
    """
    from lmm_forget.cli.export import main as export_main
    from tests.field.inputs import answers, home, job

    folder = home(tmp_path)
    words = ["recipe=lora", "training.learning_rate=2e-2", "data.eval_samples=6"]
    taught = job(folder, *words, into="taught")
    assert export_main([f"run={taught}", f"out={tmp_path / 'out'}"]) == 0
    fresh = f"store={tmp_path / 'another store'}"
    exported = job(folder, f"model.path={tmp_path / 'out'}", "data.eval_samples=6", fresh, into="exported")
    assert answers(exported) == answers(taught, stage=1)
    assert answers(taught, stage=1) != answers(taught), "a stage that changed nothing would show nothing"
    assert torch.get_num_threads() == 1
