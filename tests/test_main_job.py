"""The command line a user types, for real: a sweep with a failing job, the same command again, a skill of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tracking.run_reader import Run, run_files

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.timeout(1800)  # real sweeps of real processes; a busy machine is not a failure
TINY = [
    "experiment=smoke",
    "sequence=order",
    "sequence.tasks=[cub200,pixmocount]",
    "suite.tasks=[ai2d,mmstar]",
    "training.max_steps=1",
]


def run(cwd: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "lmm_forget.run", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **extra}
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=900, check=False)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def compared(found: dict[str, Any]) -> dict[str, Any]:
    """What two runs must agree on to the byte."""
    return {k: v for k, v in found.items() if k not in ("timings", "versions", "job")}


def test_a_failing_job_spoils_nothing_and_the_same_command_goes_on(tmp_path: Path) -> None:
    grid = ["-m", *TINY, "recipe=sa_proj", "recipe.layers=upper_half,14:28", "hardware.max_parallel_jobs=2"]
    done = run(tmp_path, *grid)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert "layers=14:28 does not fit: the model has layers 0 to 5" in done.stderr
    good, bad = (tmp_path / "multirun" / "smoke" / name for name in ("layers=upper_half", "layers=14:28"))
    if not bad.exists():
        bad = next(p for p in good.parent.iterdir() if p.name.startswith("layers=14"))
    assert (good / "results.json").exists() and not (bad / "results.json").exists()
    assert json.loads((bad / "status.json").read_text())["state"] == "failed"
    summary = (good.parent / "summary.md").read_text()
    assert bad.name in summary
    assert (good.parent / "summary.html").exists() and (good.parent / "summary.json").exists()

    before = (good / "results.json").stat().st_mtime_ns
    again = run(tmp_path, *grid)
    assert again.returncode == 1
    assert (good / "results.json").stat().st_mtime_ns == before

    alone = run(
        tmp_path,
        *TINY,
        "recipe=sa_proj",
        "recipe.layers=upper_half",
        "name=alone",
        "store=other",
        "hardware.max_parallel_jobs=1",
    )
    assert alone.returncode == 0, alone.stderr
    (single,) = (tmp_path / "multirun" / "alone").glob("*/results.json")
    assert compared(results(single.parent)) == compared(results(good))


@pytest.fixture
def skill(tmp_path: Path) -> Path:
    """Easy-VQA as a user brings it, a few pictures of it."""
    convert = [sys.executable, str(ROOT / "examples" / "easy_vqa" / "convert.py"), "data", "--images", "24"]
    subprocess.run(convert, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    return tmp_path


def test_a_skill_of_ones_own_is_taught_and_w_and_b_works_offline(skill: Path) -> None:
    pytest.importorskip("wandb")
    mine = [
        "--config-dir",
        "data/conf",
        "experiment=smoke",
        "sequence=single",
        "sequence.task=easy_vqa",
        "logger=wandb",
    ]
    done = run(skill, *mine, "suite.tasks=[ai2d]", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    (path,) = (skill / "multirun" / "smoke").glob("*/results.json")
    found = results(path.parent)
    assert [stage["task"] for stage in found["stages"]] == ["easy_vqa"]
    assert found["figures"]["target_forgetting"] == {"value": None, "low": None, "high": None}
    (file,) = run_files(path.parent)
    told = Run(file)
    steps = found["stages"][0]["steps"]
    assert (told.exit, told.steps()) == (0, [0, *range(1, steps + 1), steps + 1])
    for name in ("easy_vqa", "tiny_ai2d"):
        entries = (found["base"], *found["stages"])
        assert told.column(f"score/{name}") == [entry["scores"][name]["value"] for entry in entries]
    assert told.summary["figures/target_learning"] == found["figures"]["target_learning"]["value"]
    for table in told.tables("answers"):
        assert {row[table["columns"].index("task")] for row in table["data"]} == {"easy_vqa", "tiny_ai2d"}
        assert all(row[table["columns"].index("image")]["_type"] == "image-file" for row in table["data"])


def test_bad_samples_of_ones_own_stop_the_run_before_training(skill: Path) -> None:
    first, *rest = (skill / "data" / "train.jsonl").read_text().splitlines()
    row = json.loads(first)
    (skill / "data" / "train.jsonl").write_text("\n".join([json.dumps({**row, "image": "gone.png"}), *rest]))
    mine = ["--config-dir", "data/conf", "experiment=smoke", "sequence=single", "sequence.task=easy_vqa"]
    done = run(skill, *mine, "suite.tasks=[ai2d]")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "1 of" in last and f"first: {row['id']}" in last and "data.on_bad_sample=skip" in last
    assert not list((skill / "multirun").rglob("answers/*.parquet"))
