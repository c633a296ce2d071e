"""One stage after another on two real processes: the numbers of one process, whatever the strategy and micro-batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmm_forget.distributed.process_group import RANK_VARIABLES, SINGLE_PROCESS, RankInfo
from lmm_forget.errors import LaunchError
from lmm_forget.training.micro_batches import shrink_micro_batch_size
from tests.models.tiny import FAMILIES
from tests.training.world import GLOBAL_BATCH, RECIPES

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)  # the first test waits for all cases of both processes
LOSS = 1e-5
"""Relative difference of an fp32 loss that another order of additions may make over two stages of three steps."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, by case."""
    folder = tmp_path_factory.mktemp("world")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "passive"}
    outs = [folder / f"{rank}.json" for rank in range(2)]
    logs = [(folder / f"{rank}.log").open("wb") for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.world", str(rank), str(port), str(outs[rank])],
            cwd=ROOT,
            env={**env, "PYTHONPATH": str(ROOT)},
            stdout=logs[rank],
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        codes = [process.wait(timeout=800) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], (folder / "0.log").read_text()[-3000:] + (folder / "1.log").read_text()[-3000:]
    return [json.loads(out.read_text()) for out in outs]


def flat(losses: list[list[float]]) -> list[float]:
    return [loss for stage in losses for loss in stage]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_are_those_of_one_process(world, family, recipe):
    alone = world[0][f"{family}/{recipe}/alone"]
    others = [name for name in world[0] if name.startswith(f"{family}/{recipe}/") and not name.endswith("/alone")]
    assert len(others) >= 2
    assert flat(alone["loss"])[0] != pytest.approx(flat(alone["loss"])[2], rel=1e-3)  # it learns
    for name in others:
        assert flat(world[0][name]["loss"]) == pytest.approx(flat(alone["loss"]), rel=LOSS), name
        if "alone" not in name:
            assert world[0][name]["loss"] == world[1][name]["loss"], name
            assert world[0][name]["hashes"] == world[1][name]["hashes"], name
            assert world[1][name]["delta"] == {}, "only the first rank files anything"
        for tensor, values in alone["delta"].items():
            assert world[0][name]["delta"][tensor] == pytest.approx(values, abs=2e-4), (name, tensor)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_rank_holds_half_of_every_trained_tensor_and_of_no_other(world, family, recipe):
    shapes = [one[f"{family}/{recipe}/fsdp-4"]["shapes"] for one in world]
    assert set(shapes[0]) == set(world[0][f"{family}/{recipe}/alone"]["delta"])
    for name, (whole, local) in shapes[0].items():
        assert local[0] + shapes[1][name][1][0] == whole[0], name
        assert local[1:] == whole[1:] and 0 < local[0] < whole[0], name


@pytest.mark.parametrize("layout", ["ddp-1", "ddp-4", "ddp-16", "fsdp-4"])
def test_ranks_share_the_samples_of_one_process(world, layout):
    name = f"{FAMILIES[0]}/sa_proj/{layout}"
    half = GLOBAL_BATCH // 2
    for stage in range(2):
        whole = world[0][f"{FAMILIES[0]}/sa_proj/alone"]["ids"][stage]
        shares = [one[name]["ids"][stage] for one in world]
        assert [len(share) for share in shares] == [len(whole) // 2] * 2
        for step in range(3):
            batch = whole[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]
            parts = [share[step * half : (step + 1) * half] for share in shares]
            assert parts[0] + parts[1] == batch
            assert len(set(batch)) == GLOBAL_BATCH


@pytest.mark.parametrize("case", ["pictures", "tokens"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_batches_without_pictures_and_token_means(world, case, strategy):
    alone, several = world[0][f"{case}/alone"], world[0][f"{case}/{strategy}"]
    assert flat(several["loss"]) == pytest.approx(flat(alone["loss"]), rel=LOSS)
    assert several["hashes"] == world[1][f"{case}/{strategy}"]["hashes"]
    if case == "pictures":  # the tower really moved, and some batch of a rank really had none
        assert any("vision_tower" in name for name in alone["delta"])
        ids = [name for one in world for stage in one[f"pictures/{strategy}"]["ids"] for name in stage]
        assert ("filler" in ids) == (strategy == "fsdp")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_recomputed_activations_change_nothing(world, strategy):
    plain = world[0][f"{FAMILIES[0]}/llm/fsdp-4"]
    assert flat(world[0][f"checkpointing/{strategy}"]["loss"]) == pytest.approx(flat(plain["loss"]), rel=LOSS)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_stage_that_one_rank_was_asked_to_stop_goes_on_to_the_same_bytes(world, strategy):
    """All ranks stop behind the same step; dropout draws go on on each of them."""
    for one in world:
        found = one[f"resumed/{strategy}"]
        assert found["stopped"]
        assert found["hashes"][0] == found["hashes"][1] == world[0][f"resumed/{strategy}"]["hashes"][0]
        assert len(found["ids"][0][0]) == len(found["ids"][1][0]) // 3  # one step of three was left


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_adapters_are_merged_alike_on_all_ranks(world, strategy):
    several = world[0][f"lora/{strategy}"]
    assert several["hashes"] == world[1][f"lora/{strategy}"]["hashes"]
    assert several["hashes"].keys() == world[0]["lora/alone"]["hashes"].keys()
    assert several["loss"][1][-1] < several["loss"][0][0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_teacher_of_a_stage_is_the_same_on_all_ranks(world, strategy):
    """It is asked whole, also where its student is cut, and is the model of the stage before in the second stage."""
    alone, several = world[0]["lwf/alone"], world[0][f"lwf/{strategy}"]
    assert several["hashes"] == world[1][f"lwf/{strategy}"]["hashes"]
    assert flat(several["loss"]) == pytest.approx(flat(alone["loss"]), rel=LOSS)
    without = world[0]["lwf/without"]  # the same tensors without a teacher: equal up to the first step
    assert without["loss"][0][0] == pytest.approx(alone["loss"][0][0], rel=LOSS)
    assert without["loss"][1][-1] != pytest.approx(alone["loss"][1][-1], rel=10 * LOSS)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_penalty_of_a_sharded_model_is_that_of_one_process(world, strategy):
    """Fisher samples are shared by the ranks; each counts the penalty of its own part of a tensor."""
    alone, several = world[0]["ewc/alone"], world[0][f"ewc/{strategy}"]
    assert several["hashes"] == world[1][f"ewc/{strategy}"]["hashes"]
    assert several["state"] == world[1][f"ewc/{strategy}"]["state"]
    assert flat(several["loss"]) == pytest.approx(flat(alone["loss"]), rel=10 * LOSS)
    for name, values in alone["state"].items():
        assert several["state"][name] == pytest.approx(values, rel=1e-2, abs=1e-6), name


@pytest.mark.parametrize("size", ["1", "2", "64"])
def test_seven_questions_get_the_answers_of_one_process(world, size):
    """Unequal shares, very different lengths, batches without a picture on one rank: no hang, no copy, no gap."""
    alone = world[0]["asked/alone"][size]
    assert len(alone["texts"]) == alone["evaluated"] == 7
    for one in world:
        assert one["asked/two"][size] == alone


def test_a_step_without_memory_on_one_rank_is_taken_again_by_both(world):
    """In the second step: no sample is lost or doubled, both go on with half the micro-batch, losses stay."""
    whole = world[0][f"{FAMILIES[0]}/sa_proj/alone"]
    for one in world:
        assert one["memory"]["micro_batch_size"] == [4, 4]
        assert one["memory"]["loss"] == world[0]["memory"]["loss"]
    assert flat(world[0]["memory"]["loss"]) == pytest.approx(flat(whole["loss"]), rel=LOSS)


def test_a_repeated_step_draws_the_same_numbers(world):
    """Also on the rank that had no trouble, which had gone further."""
    for one in world:
        drawn = one["memory/drawn"]["drawn"]
        again = [i for i, numbers in enumerate(drawn) if numbers == drawn[0]]
        assert len(again) == 2 and again[1] == 2, drawn[:4]
    assert world[0]["memory/drawn"]["drawn"][0] != world[1]["memory/drawn"]["drawn"][0]


def test_the_next_smaller_micro_batch_divides_the_share():
    assert [shrink_micro_batch_size(size, 24) for size in (24, 8, 5, 3, 2, 1)] == [12, 4, 2, 1, 1, None]


def test_a_place_is_read_whole_or_refused():
    env = dict(zip(RANK_VARIABLES, ("1", "2", "1", "2", "node", "29500"), strict=True))
    assert RankInfo.from_environment(env) == RankInfo(1, 2, 1, 2)
    assert RankInfo.from_environment({}) is None and RankInfo.from_environment({"WORLD_SIZE": "1"}) is None
    with pytest.raises(LaunchError, match="WORLD_SIZE=2 is set but not LOCAL_RANK, MASTER_PORT"):
        RankInfo.from_environment({k: v for k, v in env.items() if k not in ("LOCAL_RANK", "MASTER_PORT")})
    with pytest.raises(LaunchError, match="must be whole numbers"):
        RankInfo.from_environment({**env, "RANK": "one"})
    assert (
        SINGLE_PROCESS.gather_values(3) == [3]
        and SINGLE_PROCESS.sum_over_ranks([1, True]) == [1.0, 1.0]
        and SINGLE_PROCESS.is_rank_zero
    )
