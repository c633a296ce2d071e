"""Results of made-up jobs, in the layout that jobs write, with figures from the real bootstrap."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmm_forget.metrics import TaskScores, build_score_entry, compute_figures_of_merit
from lmm_forget.store.keys import hash_json

TARGETS = ("tiny_cub200", "tiny_pixmocount", "tiny_pathvqa", "tiny_textvqa", "tiny_timeclock")
SUITE = ("tiny_ai2d", "tiny_chartqa", "tiny_docvqa")


def make_results(
    recipe: str = "sa_proj",
    learning_rate: float = 1e-4,
    *,
    loss: float = 0.1,
    gain: float = 0.6,
    seed: int = 0,
    tasks: tuple[str, ...] = TARGETS,
    suite: tuple[str, ...] = SUITE,
    job: str | None = None,
    layers: str = "all",
    component: str = "language",
    n: int = 40,
) -> dict[str, Any]:
    """A finished job: held-out tasks lose `loss` a stage and recover at the last, skills gain `gain`.

    Its answers stand under "answers", for `put` to write beside the results.
    """
    rng = np.random.default_rng([seed, int(learning_rate * 1e7), len(recipe)])
    stages = len(tasks)
    scores: dict[str, TaskScores] = {}
    for task in (*dict.fromkeys(tasks), *suite):
        level = np.full(stages + 1, 0.1)
        if task in suite:
            level = 0.95 - loss * np.array([*range(stages), max(0, stages - 2)])
        else:
            taught = max(stage for stage, name in enumerate(tasks, start=1) if name == task)
            level[taught:] += gain * 0.9 ** np.arange(stages + 1 - taught)
        luck = rng.random(n)
        scores[task] = TaskScores(task, (luck < level[:, None]).astype(float), [str(i // 2) for i in range(n)])

    def entries(stage: int) -> dict[str, Any]:
        return {
            task: build_score_entry(
                score.values[stage], np.asarray(score.clusters), tolerant_scores=list(score.values[stage])
            )
            for task, score in scores.items()
        }

    name = job or f"{recipe}-lr{learning_rate:g}-seed{seed}"
    config = {
        "model": {"name": "tiny_onevision"},
        "recipe": {"name": recipe, "layers": layers},
        "sequence": {"name": "paper", "tasks": [task.removeprefix("tiny_") for task in tasks]},
        "suite": {"name": "paper", "tasks": [task.removeprefix("tiny_") for task in suite]},
        "seed": seed,
        "training": {
            "learning_rate": learning_rate,
            "learning_rate_source": "model",
            "vision_learning_rate": 2e-6,
        },
    }
    return {
        "schema": 2,
        "job": {"name": "demo", "job": name, "hash": hash_json(config)},
        "config": config,
        "plan": {
            "trainable": 884_736,
            "frozen": 2_600_000,
            "unused": 256,
            "delta_bytes": 3_538_944,
            "state_bytes": 14_155_776,
            "rules": [{"component": component, "sublayers": ["q_proj"], "layers": layers}],
        },
        "base": {"weights_hash": "b" * 8, "scores": entries(0)},
        "stages": [
            {
                "index": stage,
                "task": task,
                "key": f"k{stage}",
                "weights_hash": f"w{stage}",
                "steps": 150,
                "loss": {"first": 2.0, "last": 0.1},
                "scores": entries(stage),
            }
            for stage, task in enumerate(tasks, start=1)
        ],
        "figures": compute_figures_of_merit(list(tasks), list(suite), scores, num_resamples=200),
        "timings": {"seconds": 60.0},
        "versions": {"numpy": np.__version__, "lmm_forget": "0.1.0"},
        "answers": [
            {
                "stage": stage,
                "task": task,
                "sample_id": f"test-{i}",
                "image_id": f"image-{i // 2}",
                "question": f"What is {i}?",
                "references": [str(i)],
                "text": str(i) if score.values[stage, i] else f"not {i}",
                "value": float(score.values[stage, i]),
                "compat": None if i % 5 == 0 else 1.0 - float(score.values[stage, i]),
                "group": None,
            }
            for stage in range(stages + 1)
            for task, score in scores.items()
            for i in range(n)
        ],
    }


def write_answers(rows: list[dict[str, Any]], folder: Path, version: bytes = b"2") -> None:
    """answers.parquet as a job leaves it."""
    schema = pa.schema(
        [
            ("stage", pa.int32()),
            *((name, pa.string()) for name in ("task", "sample_id", "image_id", "question")),
            ("references", pa.list_(pa.string())),
            ("text", pa.string()),
            ("value", pa.float64()),
            ("compat", pa.float64()),
            ("group", pa.string()),
        ],
        metadata={"lmm_forget.answers": version},
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "answers.parquet")


@pytest.fixture
def make() -> Callable[..., dict[str, Any]]:
    """The factory of results."""
    return make_results


def put_job(
    root: Path,
    job: str | None = None,
    *,
    results: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
) -> Path:
    """A job's folder below `root`, from results or from a status."""
    folder = root / (job or (results or {})["job"]["job"])
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text("name: demo\n")
    if results is not None:
        record = {key: value for key, value in results.items() if key != "answers"}
        (folder / "results.json").write_text(json.dumps(record))
        if results.get("answers"):
            write_answers(results["answers"], folder)
    if status is not None:
        (folder / "status.json").write_text(json.dumps(status))
    return folder


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Writes a job folder under multirun/demo, from results or from a status; returns multirun/demo."""
    root = tmp_path / "multirun" / "demo"

    def write(
        job: str | None = None, *, results: dict[str, Any] | None = None, status: dict[str, Any] | None = None
    ) -> Path:
        put_job(root, job, results=results, status=status)
        return root

    return write
