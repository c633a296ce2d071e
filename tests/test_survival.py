"""Kills, shared work and damage through the real command line; the long versions are benchmarks/survival.py."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests import harness

pytestmark = pytest.mark.timeout(1800)  # real processes; a busy machine is not a failure
SMALL = [
    "experiment=smoke",
    "suite.tasks=[ai2d,mmstar]",
    "sequence=order",
    "data.eval_samples=6",
    "hardware.eval_batch_size=3",
    "training.attention_dropout=0.2",
]
ONE = [
    *SMALL,
    "sequence.tasks=[cub200,timeclock]",
    "training.max_steps=6",
    "checkpoint_every=1",
    "recipe=llm",
]
GRID = [
    "-m",
    *SMALL,
    "sequence.tasks=[cub200,pixmocount,timeclock]",
    "sequence.order=range(0,6)",
    "training.max_steps=1",
    "hardware.max_parallel_jobs=2",
]


def test_six_kills_change_no_byte(tmp_path: Path) -> None:
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    calm.mkdir()
    stormy.mkdir()
    harness.run(calm, *ONE)
    rng, kills = random.Random(0), 0
    while kills < 6:
        shutil.rmtree(stormy / "multirun", ignore_errors=True)
        kills += len(harness.kill_and_repeat(stormy, ONE, rng, kills=6 - kills, longest=20))
        (one,), (other,) = ([*(f / "multirun" / "smoke").glob("*/results.json")] for f in (calm, stormy))
        assert harness.difference(one.parent, other.parent) is None
    (repairs,) = [each["job"]["repairs"] for each in harness.jobs(stormy).values()]
    assert repairs == []  # a kill never leaves damage


def test_orders_share_their_beginnings_and_two_sweeps_their_store(tmp_path: Path) -> None:
    plan = harness.run(tmp_path, *GRID, "sweep.dry_run=true")
    assert "plan: 6 jobs, 15 stages (18 if nothing were shared): 0 in the store, 15 to train" in plan
    assert not list(tmp_path.glob("multirun/*/*/job.yaml"))
    sweeps = [harness.start(tmp_path, *GRID, f"name={name}") for name in ("one", "other")]
    try:
        assert [sweep.wait(900) for sweep in sweeps] == [0, 0], (tmp_path / "run.log").read_text()[-3000:]
    finally:
        for sweep in sweeps:
            harness.kill(sweep, everyone=True)
    found = harness.jobs(tmp_path)
    assert len(found) == 12
    assert harness.trained(found.values()) == 15
    assert harness.asked(found.values()) == (1 + 15) * 5 * 6
    for name in (name for name in found if name.startswith("one/")):
        twin = name.replace("one/", "other/")
        assert harness.comparable(found[name])["stages"] == harness.comparable(found[twin])["stages"]
    assert not list((tmp_path / "multirun" / ".store" / "damaged").glob("*"))
    assert not list((tmp_path / "multirun" / ".store" / "claims").glob("*.json"))

    alone = tmp_path / "alone"
    alone.mkdir()
    plain = [word for word in GRID if word != "-m" and not word.startswith("sequence.order=")]
    harness.run(alone, *plain, "sequence.order=4")
    (single,) = (alone / "multirun" / "smoke").glob("*/results.json")
    assert harness.difference(single.parent, tmp_path / "multirun" / "one" / "order=4") is None

    again = harness.run(tmp_path, *GRID, "name=one", "sweep.dry_run=true")
    assert "15 in the store, 0 to train" in again
