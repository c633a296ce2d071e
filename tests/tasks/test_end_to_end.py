"""The paper's five skills taught and all seventeen tasks asked, by the main job, on copies in the published schema."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from lmm_forget.config import compose_config, resolve_config
from lmm_forget.experiment import pipeline
from lmm_forget.progress import NullProgress
from tests.tasks.published import TASKS, everything


def test_the_papers_experiment_runs_on_a_tiny_model(tmp_path: Path) -> None:
    overrides = [
        "experiment=smoke",
        "model=tiny_onevision",
        "data.source=real",
        "sequence=paper",
        "suite=extras",
    ]
    overrides += ["training.max_steps=1", "training.global_batch_size=4", "hardware.micro_batch_size=4"]
    overrides += [
        "data.train_samples=8",
        "data.eval_samples=3",
        "recipe=projector",
        f"store={tmp_path / 'store'}",
    ]
    for name, changes in everything(tmp_path / "data").items():
        given = {**changes, "streaming": name == "seedbench"}
        if name not in ("cub200", "textvqa", "timeclock"):
            del given["validation_fraction"]
        overrides += [f"+tasks.{name}.{key}={value}" for key, value in given.items()]
    job = tmp_path / "job"
    job.mkdir()
    results = pipeline.run_experiment(resolve_config(compose_config(overrides)), job, NullProgress())
    assert set(results["base"]["scores"]) == set(TASKS)
    assert [stage["task"] for stage in results["stages"]] == [
        "cub200",
        "pixmocount",
        "pathvqa",
        "textvqa",
        "timeclock",
    ]
    assert all(score["n"] == 3 for stage in results["stages"] for score in stage["scores"].values())
    sources = {key: value for key, value in results["versions"].items() if key.startswith("data.")}
    assert sources["data.ai2d.test"] == "local copy" and "data.pathvqa.train" in sources
    assert str(tmp_path) not in json.dumps({**results, "job": None, "timings": None})
    answers = pq.read_table(job / "answers.parquet").to_pydict()
    asked = dict(zip(answers["task"], answers["question"], strict=True))
    assert set(asked) == set(TASKS)
    assert asked["pathvqa"].startswith("Look at the medical image and answer the following question: ")
