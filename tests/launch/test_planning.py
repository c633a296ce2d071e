"""What a sweep shares is counted before it starts, and side-by-side jobs keep out of each other's way."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch

from lmm_forget.config import compose_config, resolve_config
from lmm_forget.launch.job_folders import Job
from lmm_forget.launch.sweep_plan import SweepPlan
from lmm_forget.models.weight_hashes import hash_tensor
from lmm_forget.store import Store
from lmm_forget.store.input_fingerprints import InputFingerprinter, select_training_inputs

SKILLS = ["tiny_cub200", "tiny_pixmocount", "tiny_pathvqa", "tiny_timeclock"]


def jobs(store: Path, skills: list[str], recipes: tuple[str, ...] = ("llm",)) -> list[Job]:
    """Every order of the skills under every recipe."""
    found = []
    for recipe in recipes:
        config = resolve_config(compose_config([f"recipe={recipe}", f"store={store}", "experiment=smoke"]))
        for number, order in enumerate(itertools.permutations(skills)):
            tasks: dict[str, Any] = {**config, "sequence": {"name": "order", "tasks": list(order)}}
            found.append(Job(f"{recipe}-{number}", store.parent / recipe / str(number), tasks))
    return found


def read_by(job: Job) -> dict[str, str]:
    """Fingerprints of what the job's first stage is trained from."""
    return select_training_inputs(
        InputFingerprinter().compute_fingerprints(job.config)[0], job.config["sequence"]["tasks"][:1]
    )


def test_all_orders_of_four_skills_are_sixty_four_stages_per_recipe(tmp_path: Path) -> None:
    plan = SweepPlan(jobs(tmp_path / "store", SKILLS, ("llm", "sa_proj")))
    assert plan.count_work() == {
        "jobs": 48,
        "stages": 192,
        "different": 128,
        "in_store": 0,
        "to_train": 128,
        "bases": 1,
        "evaluate": 129,
        "finished": 0,
    }
    assert plan.format_plan_line().startswith(
        "plan: 48 jobs, 128 stages (192 if nothing were shared): 0 in the store, 128 to"
    )
    assert "129 models to evaluate (1 base among them)" in plan.format_plan_line()
    assert plan.format_recipe_lines() == [
        "  llm: 64 stages, 0 in the store, 64 to train",
        "  sa_proj: 64 stages, 0 in the store, 64 to train",
    ]


def test_what_the_store_has_is_not_planned_again(tmp_path: Path) -> None:
    some = jobs(tmp_path / "store", SKILLS[:3])
    store, plan = Store(tmp_path / "store"), SweepPlan(some)
    first = plan.path_keys_by_job["llm-0"][0]
    inputs = read_by(some[0])
    store.cache_stage_key(first, "k", inputs)
    assert plan.count_work()["in_store"] == 0  # a hint without a record is no stage
    delta = {"w": torch.ones(1)}
    store.commit_stage("k", {"tensors": {"w": hash_tensor(delta["w"])}}, delta)
    assert plan.count_work()["in_store"] == 1
    store.cache_stage_key(first, "k", {**inputs, "model": "another folder's content"})
    assert SweepPlan(some).count_work()["in_store"] == 0
    store.cache_stage_key(first, "k", inputs)
    assert (
        SweepPlan(some)
        .format_plan_line()
        .startswith("plan: 6 jobs, 15 stages (18 if nothing were shared): 1 in the store, 14")
    )


def test_the_next_job_is_one_that_need_not_wait(tmp_path: Path) -> None:
    some = jobs(tmp_path / "store", SKILLS[:3])
    plan = SweepPlan(some)
    assert plan.pick_next_job(some, []) == 0
    # Orders 0 and 1 begin with the same skill as the running order 0; order 2 begins with another.
    assert some[1:][plan.pick_next_job(some[1:], some[:1])].name == "llm-2"
    assert some[1:2] and plan.pick_next_job(some[1:2], some[:1]) == 0  # it has to wait, but a process is free
    store = Store(tmp_path / "store")
    delta = {"w": torch.ones(1)}
    store.commit_stage("k", {"tensors": {"w": hash_tensor(delta["w"])}}, delta)
    store.cache_stage_key(plan.path_keys_by_job["llm-0"][0], "k", read_by(some[0]))
    assert plan.pick_next_job(some[1:], some[:1]) == 0  # what they share is there: their ways part now
