"""Own inputs: coloured squares with questions about them, copies of the packaged model, and ways to run a job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from lmm_forget.config import build_single_job_name, compose_config, resolve_config
from lmm_forget.experiment.job import main as job_main
from lmm_forget.models.loading import LMM, load_model
from lmm_forget.models.model_source import find_packaged_model
from lmm_forget.tasks.jsonl import JsonlTask
from lmm_forget.tasks.sample_set import limit_samples
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from tests.evaluation.questions import evaluate_task

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}
QUICK = (
    "sequence=single",
    "sequence.task=mine",
    "suite.tasks=[tiny_ai2d]",
    "training.global_batch_size=4",
    "hardware.micro_batch_size=4",
    "hardware.precision=fp32",
    "training.max_steps=2",
    "data.eval_samples=3",
)
"""A whole run in about two seconds: one skill, one benchmark, two steps."""


def squares(folder: Path, n: int = 24, answers: Sequence[str] | None = None) -> Path:
    """`n` pictures of one colour each in `folder/img`, and `data.jsonl` with a question about each."""
    (folder / "img").mkdir(parents=True, exist_ok=True)
    names = list(COLOURS)
    rows = []
    for i in range(n):
        picture = Image.new("RGB", (64, 64), COLOURS[names[i % 4]])
        picture.putpixel((i % 64, i // 64), (0, 0, 0))  # no two pictures are the same
        picture.save(folder / "img" / f"{i}.png")
        answer = answers[i] if answers else names[i % 4]
        rows.append({"id": f"q{i}", "image": f"img/{i}.png", "question": "Which colour?", "answer": answer})
    return write_rows(folder / "data.jsonl", rows)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def task_yaml(folder: Path, data: Path | str, name: str = "mine", **more: Any) -> Path:
    """A folder for --config-dir with task/<name>.yaml over `data`; returns it."""
    node = {
        "_target_": "lmm_forget.tasks.jsonl.JsonlTask",
        "role": "target",
        "path": str(data),
        "max_new_tokens": 8,
        "scorer": {"_target_": "lmm_forget.tasks.scoring.exact.ExactMatchScorer"},
        **more,
    }
    path = folder / "conf" / "task" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(node, ensure_ascii=False), encoding="utf-8")  # JSON is YAML
    return folder / "conf"


def home(folder: Path, n: int = 24) -> Path:
    """A folder with data and the task that reads it: all that a user brings."""
    task_yaml(folder, squares(folder, n))
    return folder


def model_copy(folder: Path, name: str = "tiny_onevision") -> Path:
    """A copy of a packaged model that a test may change."""
    shutil.copytree(find_packaged_model(name), folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; `text_config__rope_theta=…` reaches one level down."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        node, *rest = key.split("__")
        if rest:
            content[node][rest[0]] = value
        else:
            content[node] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def job(folder: Path, *words: str, into: str | None = None, code: int = 0) -> Path:
    """Run one job in this process, as its own process would, from `folder`; returns the job's folder.

    `into` names the job's folder below multirun/field. AssertionError if it ends with another exit code than `code`.
    """
    cfg = compose_config([*QUICK, f"store={folder / 'multirun' / '.store'}", *words], folder / "conf")
    config = resolve_config(cfg)
    where = folder / "multirun" / ("field" if into else config["name"]) / (into or build_single_job_name(config))
    where.mkdir(parents=True, exist_ok=True)
    (where / "job.yaml").write_text(json.dumps(config), encoding="utf-8")
    assert job_main([str(where / "job.yaml")]) == code
    return where


def results(folder: Path) -> dict[str, Any]:
    """A finished job's results.json."""
    return dict(json.loads((folder / "results.json").read_text(encoding="utf-8")))


def work_done(folder: Path) -> tuple[int, int]:
    """How many questions a job asked itself, and how many stages it trained itself."""
    timings = results(folder)["timings"]
    stages = timings["stages"]
    return timings["base_evaluated"] + sum(s["evaluated"] for s in stages), sum(s["trained"] for s in stages)


def answers(folder: Path, stage: int = 0) -> dict[tuple[str, str], str]:
    """What a job's model said after `stage` (0: the base), by task and sample."""
    rows = pq.read_table(folder / "answers.parquet").to_pylist()
    return {(row["task"], row["sample_id"]): row["text"] for row in rows if row["stage"] == stage}


def tiny(path: Path | str = "package:tiny_onevision", **spec: Any) -> LMM:
    """A model loaded from a folder, as a job loads it."""
    return load_model({"name": "tiny", "path": str(path), "dtype": "float32", "attention": "eager", **spec})


def benchmark(data: Path, **more: Any) -> JsonlTask:
    """The questions of a JSONL file as a held-out benchmark."""
    options = {"name": "mine", "role": "held_out", "max_new_tokens": 8, "scorer": ExactMatchScorer(), **more}
    return JsonlTask(path=str(data), **options)


def said(lmm: LMM, data: Path, limit: int | None = None, eval_batch: int = 64) -> list[str]:
    """What a model says to the questions of a JSONL file, asked without any store."""
    task = benchmark(data)
    samples = limit_samples(task.load_samples("test"), limit, task.name)
    return [answer.text for answer in evaluate_task(lmm, task, samples, batch_size=eval_batch)]


def command(
    cwd: Path, *words: str, env: Mapping[str, str | None] | None = None, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run `python -m lmm_forget.WORDS` to its end; variables that are None in `env` are taken out."""
    wanted = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=cwd,
        env={key: value for key, value in wanted.items() if value is not None},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=900,
        check=False,
        **{"stdin": subprocess.DEVNULL, **how},
    )


def one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Assert that a command was refused in one line that holds all `words`."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("lmm-forget: error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
