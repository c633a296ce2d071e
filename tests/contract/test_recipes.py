"""The contract of a recipe with a family: every recipe there is, on every model, in one process.

Base in bf16, compute under autocast, as a real run has it. The lesson holds a square picture, a wide one, two of
different size, and a text without any.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from lmm_forget.config import find_conf_dir
from lmm_forget.models.loading import LMM
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.recipes.method import Method, StageContext, StageOutput, build_method, get_parameter_dtypes
from lmm_forget.recipes.plain import Plain
from lmm_forget.recipes.selection import TunePlan, load_recipe
from lmm_forget.training.micro_batches import TrainItem
from lmm_forget.training.precision import PrecisionContext
from lmm_forget.training.stage_config import TrainStageConfig
from lmm_forget.training.train_stage import train_stage
from tests.models.subjects import PACKAGED, SUBJECTS, subject
from tests.models.tiny import FAMILIES, picture
from tests.recipes.stage_calls import end_stage, start_stage
from tests.training.lesson import HARDWARE, TRAINING, plan_for

ALL = tuple(sorted(path.stem for path in (Path(find_conf_dir()) / "recipe").glob("*.yaml")))
# Models without a file of their own share all code; what can differ is which parts are reached.
SOME = ("full", "mlp_gateup", "projector", "sa_proj")
# The packaged models are larger, and the random models of their families are held to every recipe.
FEW = ("sa_proj",)
LESSON = (
    TrainItem("square", "Number 1?", [picture(seed=1)], "w"),
    TrainItem("wide", "And what is this?", [picture(112, 56, 2)], "wx"),
    TrainItem("two", "Which?", [picture(seed=3), picture(60, 90, 4)], "wxy"),
    TrainItem("text", "No picture?", [], "wxyz"),
)


def method_of(recipe: str) -> Method:
    """The method that a recipe's YAML names, with the rank of small models where it asks for one."""
    config = OmegaConf.create({"model": {"training": {"lora_rank": 4}}, "recipe": load_recipe(recipe)})
    return build_method(OmegaConf.to_container(config.recipe, resolve=True))


class Contract:
    """One model, put back to its base after every recipe."""

    def __init__(self, lmm: LMM, folder: Path) -> None:
        self.lmm, self.file = lmm, folder / "delta.safetensors"
        self.base = {name: p.detach().clone() for name, p in lmm.model.named_parameters()}
        self.hashes, self.dtypes = hash_parameters(lmm.model), get_parameter_dtypes(lmm.model)
        self.encoded = lmm.family.encode_batch(
            lmm.processor,
            [item.question for item in LESSON],
            [list(item.images) for item in LESSON],
            [item.answer for item in LESSON],
        )
        self.logits = self.first_logits()

    def precision(self) -> PrecisionContext:
        return PrecisionContext(self.lmm.model, "bf16", "cpu", self.dtypes)

    def put_back(self) -> None:
        with torch.no_grad():
            for name, p in self.lmm.model.named_parameters():
                p.copy_(self.base[name])
        assert hash_parameters(self.lmm.model) == self.hashes

    def first_logits(self) -> torch.Tensor:
        with torch.no_grad(), self.precision() as compute, compute.make_autocast_context():
            logits: torch.Tensor = self.lmm.model(**self.encoded.tensors).logits
        return logits

    def gradients(self, method: Method) -> dict[str, torch.Tensor]:
        """The gradients of one pass over the lesson, by the name of what requires one."""
        model = self.lmm.model
        assert self.encoded.labels is not None
        with self.precision() as compute:
            with compute.make_autocast_context():
                loss = method.loss(self.lmm, dict(self.encoded.tensors), self.encoded.labels)
            loss.sum().backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        asked = {name for name, p in model.named_parameters() if p.requires_grad}
        assert found.keys() == asked, "a gradient exists exactly where one is asked for"
        model.zero_grad(set_to_none=True)
        return found

    def obeys(self, recipe: str) -> None:
        """Hold one recipe to the contract."""
        lmm, method = self.lmm, method_of(recipe)
        plan = method.adapt_plan(lmm.model, plan_for(lmm, recipe))
        start_stage(method, lmm, plan, train_set=LESSON)
        assert torch.equal(self.first_logits(), self.logits), "the first logits are the base's"
        gradients = self.gradients(method)
        moving = {re.sub(r"\.lora_[AB]\.\w+", "", name) for name in gradients}  # an adapter moves its tensor
        assert moving == set(plan.trainable)
        assert all(torch.isfinite(g).all() for g in gradients.values())
        losses = self.taught(plan, method)
        assert losses[-1] < losses[0], "the loss falls"
        delta = end_stage(method, lmm, plan, self.dtypes)
        after = hash_parameters(lmm.model)
        assert {name for name in after if after[name] != self.hashes[name]} == set(plan.trainable)
        assert delta.keys() == set(plan.trainable)
        assert get_parameter_dtypes(lmm.model) == self.dtypes
        assert not any(p.requires_grad for p in lmm.model.parameters())
        save_file(delta, self.file)
        self.put_back()
        with torch.no_grad():
            parameters = dict(lmm.model.named_parameters())
            for name, tensor in load_file(self.file).items():
                parameters[name].copy_(tensor)
        assert hash_parameters(lmm.model) == after, "the saved delta makes the stage model out of the base"
        self.put_back()

    def taught(self, plan: TunePlan, method: Method) -> list[float]:
        settings: dict[str, Any] = {**TRAINING, "learning_rate": 5e-3, "max_steps": 4, "warmup_ratio": 0.0}
        result = train_stage(
            self.lmm,
            plan,
            method,
            LESSON,
            TrainStageConfig(training_config=settings, hardware_config=HARDWARE, seed=0, task="contract"),
        )
        return result.step_losses


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_recipe(name: str, tmp_path: Path) -> None:
    contract = Contract(subject(name, torch.bfloat16), tmp_path)
    broken = []
    for recipe in ALL if name in FAMILIES else FEW if name in PACKAGED else SOME:
        try:
            contract.obeys(recipe)
        except AssertionError as error:
            broken.append(f"{recipe}: {str(error).splitlines()[0]}")
            contract = Contract(subject(name, torch.bfloat16), tmp_path)
    assert not broken, "\n".join(broken)


def test_the_contract_notices_a_recipe_that_moves_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaky(Plain):
        def end_stage(self, context: StageContext, lmm: LMM) -> StageOutput:
            with torch.no_grad():
                lmm.model.get_parameter(context.plan.frozen[0]).mul_(2)
            return super().end_stage(context, lmm)

    monkeypatch.setattr("tests.contract.test_recipes.method_of", lambda _: Leaky())
    with pytest.raises(AssertionError):
        Contract(subject("llava_next", torch.bfloat16), tmp_path).obeys("sa_proj")
