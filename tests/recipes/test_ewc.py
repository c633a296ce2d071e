"""EWC: Fisher against gradients one by one, penalty against the formula, state through kills and the store."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lmm_forget.config import compose_config, resolve_config
from lmm_forget.errors import ConfigError
from lmm_forget.experiment import pipeline
from lmm_forget.models.loading import LMM
from lmm_forget.models.weight_hashes import hash_parameters
from lmm_forget.progress import NullProgress
from lmm_forget.recipes.ewc import EWC, estimate_fisher, select_fisher_samples
from lmm_forget.recipes.method import StageContext, StageOutput, build_method, get_parameter_dtypes
from lmm_forget.recipes.method_state import MethodState
from lmm_forget.recipes.plain import Plain
from lmm_forget.recipes.selection import TunePlan, load_recipe
from lmm_forget.store import StageCheckpoints, Store
from lmm_forget.store.keys import hash_json
from lmm_forget.training.stage_config import TrainStageConfig
from lmm_forget.training.train_stage import train_stage
from lmm_forget.training.train_state import ResumeConfig
from tests.models.tiny import FAMILIES, tiny_lmm
from tests.training.lesson import HARDWARE, TRAINING, plan_for, samples
from tests.training.test_resume import Dying, Killed

FP32 = {**HARDWARE, "precision": "fp32"}
SETTINGS = {**TRAINING, "learning_rate": 1e-2, "epochs": 3}


def run_stage(
    method: Plain, lmm: LMM, plan: TunePlan, state: MethodState | None = None, task: str = "x", **more: Any
) -> tuple[list[float], StageOutput]:
    """One stage on the model as it is: the loss of each step, and what it leaves."""
    context = StageContext(plan, get_parameter_dtypes(lmm.model), task=task, seed=7)
    items = samples(8)
    method.start_stage(context, lmm, items, state)
    config = TrainStageConfig(training_config=SETTINGS, hardware_config=FP32, seed=0, task=task, **more)
    result = train_stage(lmm, plan, method, items, config)
    return result.step_losses, method.end_stage(context, lmm)


def set_up(dtype: torch.dtype = torch.float32, family: str = "llava_onevision") -> tuple[LMM, TunePlan]:
    lmm = tiny_lmm(family, dtype=dtype)
    return lmm, EWC().adapt_plan(lmm.model, plan_for(lmm, "ewc"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fisher_diagonal_is_the_mean_of_squared_gradients_of_each_sample(family: str) -> None:
    lmm, plan = set_up(family=family)
    before = hash_parameters(lmm.model)
    items = samples(4)
    found = estimate_fisher(StageContext(plan, get_parameter_dtypes(lmm.model)), lmm, items)
    assert hash_parameters(lmm.model) == before and not any(p.requires_grad for p in lmm.model.parameters())
    assert found.keys() == set(plan.trainable)
    parameters = {name: p for name, p in lmm.model.named_parameters() if name in found}
    for p in parameters.values():
        p.requires_grad_(True)
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for item in items:
        encoded = lmm.family.encode_batch(lmm.processor, [item.question], [list(item.images)], [item.answer], [None])
        log_probs = lmm.model(**encoded.tensors).logits.log_softmax(-1)[0]
        targets = [(t - 1, int(label)) for t, label in enumerate(encoded.labels[0]) if label != -100]
        assert len(targets) >= 2  # of the answer and its end
        log_likelihood = sum(log_probs[position, token] for position, token in targets)
        gradients = torch.autograd.grad(log_likelihood, list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            expected[name] += gradient**2 / len(items)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=2e-4, atol=1e-9)
    assert sum(float(t.sum()) for t in found.values()) > 0


def test_the_loss_of_each_sample_holds_the_penalty_and_its_gradient() -> None:
    lmm, plan = set_up()
    fisher = {n: torch.rand(p.shape) for n, p in lmm.model.named_parameters() if n in plan.trainable}
    method, context = EWC(weight=3.0), StageContext(plan, get_parameter_dtypes(lmm.model))
    method.start_stage(context, lmm, samples(2), MethodState(fisher, {"stages": []}))
    start = {n: p.detach().clone() for n, p in lmm.model.named_parameters() if n in plan.trainable}
    with torch.no_grad():
        for n, p in lmm.model.named_parameters():
            if n in plan.trainable:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    items = samples(2)
    encoded = lmm.family.encode_batch(
        lmm.processor, [i.question for i in items], [list(i.images) for i in items], [i.answer for i in items]
    )
    parameters = {n: p for n, p in lmm.model.named_parameters() if n in plan.trainable}
    plain, ours = (m.loss(lmm, dict(encoded.tensors), encoded.labels) for m in (Plain(), method))
    penalty = sum(1.5 * (fisher[n] * (p - start[n]) ** 2).sum() for n, p in parameters.items())
    torch.testing.assert_close(ours - plain, penalty.detach().expand(2), rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad((ours - plain).mean(), list(parameters.values()))
    for (n, p), gradient in zip(parameters.items(), gradients, strict=True):
        torch.testing.assert_close(gradient, 3.0 * fisher[n] * (p - start[n]).detach(), rtol=1e-3, atol=1e-5)


def test_the_first_stage_is_plain_tuning_and_the_second_is_held() -> None:
    lmm, plan = set_up()
    plain, _ = set_up()
    losses, output = run_stage(EWC(weight=1e4), lmm, plan)
    plain_losses, _ = run_stage(Plain(), plain, plan)
    assert losses == plain_losses and hash_parameters(lmm.model) == hash_parameters(plain.model)
    assert output.state is not None and output.state.values == {"stages": [{"samples": 8}]}
    start = {n: p.detach().clone() for n, p in lmm.model.named_parameters() if n in plan.trainable}
    moved = {}
    for name, method in (("held", EWC(weight=1e6)), ("free", EWC(weight=0))):
        with torch.no_grad():
            for n, p in lmm.model.named_parameters():
                if n in start:
                    p.copy_(start[n])
        _, second = run_stage(method, lmm, plan, output.state, "y")
        moved[name] = sum(
            float((output.state.tensors[n] * (p - start[n]) ** 2).sum())
            for n, p in lmm.model.named_parameters()
            if n in start
        )
        if name == "held":
            assert second.state is not None and len(second.state.values["stages"]) == 2
            assert all(bool((second.state.tensors[n] >= output.state.tensors[n]).all()) for n in start)
        else:
            assert second.state is None
    assert moved["held"] < 0.2 * moved["free"]


def test_no_extra_memory_in_the_first_stage_and_the_planned_memory_later() -> None:
    lmm, plan = set_up(torch.bfloat16)
    method, context = EWC(), StageContext(plan, get_parameter_dtypes(lmm.model))
    method.start_stage(context, lmm, [], None)
    assert not list(method.get_extra_state())
    lmm, plan = set_up(torch.bfloat16)
    fisher = {n: torch.zeros(p.shape) for n, p in lmm.model.named_parameters() if n in plan.trainable}
    method.start_stage(context, lmm, [], MethodState(fisher))
    assert sum(t.nbytes for t in method.get_extra_state()) == plan.extra_state_bytes
    assert sum(t.nbytes for t in fisher.values()) == method.estimate_state_bytes(plan)


def test_killed_in_its_second_stage_and_taken_up_it_gives_the_same_bytes(tmp_path: Path) -> None:
    lmm, plan = set_up()
    method = EWC(weight=100.0)
    _, first = run_stage(method, lmm, plan)
    start = copy.deepcopy(lmm.model.state_dict())
    losses, second = run_stage(method, lmm, plan, first.state, "y")
    wanted, store = hash_parameters(lmm.model), Store(tmp_path)
    again, _ = set_up()
    again.model.load_state_dict(start)
    with pytest.raises(Killed):
        run_stage(EWC(weight=100.0), again, plan, first.state, "y", resume_config=ResumeConfig(Dying(store, "k"), 2))
    fresh, _ = set_up()
    fresh.model.load_state_dict(start)
    torch.manual_seed(99)
    resume = ResumeConfig(StageCheckpoints(store, "k"), 2)
    resumed_losses, resumed = run_stage(EWC(weight=100.0), fresh, plan, first.state, "y", resume_config=resume)
    assert resumed_losses == losses and hash_parameters(fresh.model) == wanted
    assert second.state is not None and resumed.state is not None and resumed.state.digest == second.state.digest


def test_samples_are_drawn_from_the_stages_seed() -> None:
    random.seed(1)
    assert select_fisher_samples(100, 5, 3) == select_fisher_samples(100, 5, 3) != select_fisher_samples(100, 5, 4)
    assert select_fisher_samples(3, 64, 0) == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"weight": -1}, "weight=-1"), ({"fisher_samples": 0}, "fisher_samples=0"), ({"x": 1}, "x")],
)
def test_settings_that_cannot_be_used_are_one_line(settings: dict[str, Any], message: str) -> None:
    node = load_recipe("ewc")
    with pytest.raises(ConfigError, match=message) as error:
        build_method({**node, "method": {**node["method"], **settings}})
    assert "\n" not in str(error.value)


JOB = [
    *("experiment=smoke", "suite.tasks=[ai2d]", "data.train_samples=8", "data.eval_samples=2", "training.max_steps=2"),
    *("sequence=order", "sequence.tasks=[cub200,pixmocount]", "sequence.order=0", "recipe=ewc"),
    *("recipe.method.fisher_samples=4", "training.learning_rate=1e-3"),
]


def run_job(store: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    config = resolve_config(compose_config([*JOB, f"store={store}", *overrides]))
    results = pipeline.run_experiment(config, folder, NullProgress())
    assert results is not None
    return results


def test_a_job_with_its_first_stage_from_the_store_gives_the_same_bytes(tmp_path: Path) -> None:
    """In one go, or the first stage from a job that ended there; the state counts in the next stage's key."""
    once = run_job(tmp_path / "one", tmp_path / "a")
    first = run_job(tmp_path / "two", tmp_path / "b", "sequence.tasks=[cub200]")
    assert first["stages"][0]["key"] == once["stages"][0]["key"]
    then = run_job(tmp_path / "two", tmp_path / "c")
    trained = [stage["trained"] for stage in then["timings"]["stages"]]
    assert trained == [False, True]
    assert [(s["key"], s["weights_hash"], s["loss"]) for s in then["stages"]] == [
        (s["key"], s["weights_hash"], s["loss"]) for s in once["stages"]
    ]
    key, second_key = (stage["key"] for stage in once["stages"])
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    records = [store.read_record(k) for store in (one, two) for k in (key, second_key)]
    assert records[0]["method_state"] == records[2]["method_state"] == records[1]["ingredients"]["method_state"]
    assert records[1]["method_state"] == records[3]["method_state"] != records[0]["method_state"]
    ingredients = records[1]["ingredients"]
    assert hash_json(ingredients) == second_key != hash_json({**ingredients, "method_state": "another"})
