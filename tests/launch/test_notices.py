"""What finished jobs want people to know is said once, at the end of the sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmm_forget.launch.job_folders import Job
from lmm_forget.launch.local import print_job_warnings


def job(folder: Path, **about: Any) -> Job:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"job": {"name": "demo", **about}}))
    return Job(folder.name, folder, {"name": "demo"})


def test_equal_notices_of_several_jobs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "demo"
    jobs = [
        job(sweep / "a", warnings=[f"W&B was not reached; wandb sync {sweep / 'a'}/wandb/offline-run-*"]),
        job(sweep / "b", warnings=[f"W&B was not reached; wandb sync {sweep / 'b'}/wandb/offline-run-*"]),
        job(sweep / "c"),
    ]
    print_job_warnings(jobs)
    (line,) = capsys.readouterr().err.splitlines()
    note = f"W&B was not reached; wandb sync {sweep}/*/wandb/offline-run-* (2 jobs)"
    assert line == f"lmm-forget: note: {note}"
