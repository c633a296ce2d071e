"""What is printed while jobs run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from lmm_forget.launch.job_folders import Job
from lmm_forget.launch.outcomes import JobOutcome
from lmm_forget.launch.progress_display import ProgressDisplay, format_time_left


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def running(folder: Path, **fields: object) -> Job:
    job = Job(folder.name, folder, {})
    folder.mkdir()
    (folder / "status.json").write_text(json.dumps({"state": "running", "unit": "step", "info": {}, **fields}))
    return job


def test_plain_lines_one_per_phase(tmp_path: Path) -> None:
    stream = io.StringIO()
    job = running(tmp_path / "sa_proj", phase="stage 1/5 train", done=3, total=10, rate=2.0)
    with ProgressDisplay([job], stream=stream) as view:
        view.on_job_started(job)
        view.on_tick()
        view._next_refresh = 0.0
        view.on_tick()
        view.on_job_ended(JobOutcome(job, is_finished=False, cause="no [image]"))
    lines = stream.getvalue().splitlines()
    assert lines[1:] == ["sa_proj: stage 1/5 train (10 steps)", "[1/1] sa_proj: FAILED"]
    assert lines[0].startswith("sa_proj: started")


def test_a_table_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "110")
    stream = Terminal()
    info = {"loss": 0.51234}
    jobs = [
        running(tmp_path / "a", phase="train birds", done=3, total=10, rate=0.5, info=info),
        running(tmp_path / "b"),
    ]
    with ProgressDisplay(jobs, stream=stream) as view:
        view.on_job_started(jobs[0])
        view.on_tick()
    shown = stream.getvalue()
    assert "0 of 2 jobs finished, 1 waiting" in shown
    assert "train birds" in shown and "loss 0.512" in shown and "2.0 s/step" in shown and "0:14" in shown


def test_the_table_can_be_read_at_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    job = running(
        tmp_path / "mlp_gateup-learning_rate=0.0003-order=17-seed3",
        phase="stage 3 of 5: evaluate",
        done=1200,
        total=2600,
        unit="question",
        rate=51.2,
        info={"task": "tiny_realworldqa"},
    )
    with ProgressDisplay([job], stream=stream) as view:
        view.on_job_started(job)
        view.on_tick()
    shown = stream.getvalue()
    assert "…" not in shown  # names and phases go on in the next line instead of being cut
    assert "stage 3 of 5: evaluate" in shown and "task tiny_realworldqa" in shown
    assert "51.2 quest/s" in shown and "0:27" in shown


@pytest.mark.parametrize(
    "status, text",
    [
        ({"done": 10, "total": 100, "rate": 1.0}, "1:30"),
        ({"done": 0, "total": 7300, "rate": 1.0}, "2:01:40"),
        ({"done": 0, "total": 100, "rate": None}, ""),
        ({"done": 5, "total": 0, "rate": 1.0}, ""),
    ],
)
def test_time_left(status: dict, text: str) -> None:
    assert format_time_left(status) == text
