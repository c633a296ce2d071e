"""A finished job is known by what it read: the same command after a change of its data does the job again."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lmm_forget.report.job_results import load_sweep
from tests.test_main_job import results, run

pytestmark = pytest.mark.timeout(1800)
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}
COMMAND = [
    *("--config-dir", "conf", "sequence=single", "sequence.task=mine", "suite.tasks=[tiny_ai2d]"),
    *("training.global_batch_size=4", "hardware.micro_batch_size=4", "training.max_steps=1", "data.eval_samples=2"),
]
TASK = """\
_target_: lmm_forget.tasks.jsonl.JsonlTask
role: target
path: data.jsonl
max_new_tokens: 8
scorer: {_target_: lmm_forget.tasks.scoring.exact.ExactMatchScorer}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conf/task").mkdir(parents=True)
    (tmp_path / "conf/task/mine.yaml").write_text(TASK)
    names = list(COLOURS)
    rows = []
    for i in range(24):
        Image.new("RGB", (64, 64), tuple(c - i // 4 for c in COLOURS[names[i % 4]])).save(tmp_path / f"{i}.png")
        rows.append({"id": f"q{i}", "image": f"{i}.png", "question": "Which colour?", "answer": names[i % 4]})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def relabel(path: Path, to: Path) -> None:
    text = path.read_text()
    for name in COLOURS:
        text = text.replace(f'"{name}"', f'"dark {name}"')
    to.write_text(text)


def finished(cwd: Path, *more: str) -> subprocess.CompletedProcess[str]:
    done = run(cwd, *COMMAND, *more)
    assert done.returncode == 0, done.stderr
    return done


def trained(found: dict[str, Any]) -> bool:
    return bool(found["timings"]["stages"][0]["trained"])


def test_new_labels_are_a_new_job_and_the_old_results_are_kept(folder: Path) -> None:
    finished(folder)
    job = next((folder / "multirun/tiny_onevision").glob("*/results.json")).parent
    before = results(job)
    assert "finished already; nothing to run" in finished(folder).stderr
    relabel(folder / "data.jsonl", folder / "data.jsonl")
    again = finished(folder)
    assert "the data of task mine" in again.stderr and "previous-1" in again.stderr
    assert results(job / "previous-1") == before and (job / "previous-1/answers.parquet").exists()
    after = results(job)
    assert trained(after) and after["stages"][0]["key"] != before["stages"][0]["key"]
    asked = [found["data"]["mine"]["evaluated"] for found in (before, after)]
    assert asked[0]["fingerprint"] == asked[1]["fingerprint"]  # the questions are the same
    assert asked[0]["references"] != asked[1]["references"]
    assert "finished already; nothing to run" in finished(folder).stderr


def test_two_data_files_are_two_jobs_and_the_page_says_what_differs(folder: Path) -> None:
    relabel(folder / "data.jsonl", folder / "b.jsonl")
    finished(folder, "-m", "+tasks.mine.path=data.jsonl,b.jsonl")
    sweep = folder / "multirun/tiny_onevision"
    found = load_sweep(sweep)
    assert len(found.results) == 2 and not found.notes
    assert len({each["stages"][0]["key"] for each in found.results.values()}) == 2
    summary = json.loads((sweep / "summary.json").read_text())
    assert any("not scored by the same references of mine" in note for note in summary["notes"])
    with (sweep / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({tuple(row.values()) for row in rows}) == 2
    names = {job["extra"][0] for job in summary["jobs"]}
    assert names == set(found.results), "rows of equal configurations are called by their jobs"
