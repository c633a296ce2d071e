"""An offline run is complete by itself: read back from its file, and uploaded by W&B's own `wandb sync`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmm_forget.errors import ConfigError, DataError
from lmm_forget.tracking import open_tracker
from tests.tracking.fake_job import log_job, log_training, make_config, make_stage_metrics
from tests.tracking.fake_server import KEY, Server
from tests.tracking.run_reader import Run, run_files

ROWS = [0, 1, 11, 21, 23, 24, 25, 35, 45, 47, 48]  # base, 4 points of a curve, stage 1, 4 points, stage 2
SECRET = "hunter2-correct-horse"


def test_every_metric_config_and_table_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    job = tmp_path / "multirun" / "sa_proj"
    config = make_config(tmp_path, tags=["mine"])
    config["tasks"] = {"count": {"password": "letmein", "note": f"key {SECRET}", "max_new_tokens": 4}}
    assert log_job(open_tracker(config, job)) == []

    (path,) = run_files(job)
    run = Run(path)
    assert (run.run.project, run.run.run_group, run.run.display_name) == ("lmm-forget", "sweep", "sa_proj")
    assert list(run.run.tags) == ["tiny_onevision", "sa_proj", "paper", "mine"]
    assert run.config["sequence"] == config["sequence"]
    assert run.config["tasks"]["count"] == {
        "password": "(hidden)",
        "note": "key (hidden)",
        "max_new_tokens": 4,
    }
    for file in (p for p in job.rglob("*") if p.is_file()):
        content = file.read_bytes()
        assert SECRET.encode() not in content and KEY.encode() not in content, file
        assert b"letmein" not in content, file

    assert run.steps() == ROWS
    assert run.column("stage") == [0, 1, 2]
    assert run.column("score/count") == [0, 20, 40]
    assert run.column("change/ai2d") == [0, -10, -20]
    assert run.column("heldout/mean") == [85, 75, 65]
    assert run.column("heldout/change") == [0, -10, -20]
    assert run.column("stage/task") == ["count", "clock"]
    assert run.column("stage/learning") == [20, 10]
    assert run.column("train/global_step") == [1, 11, 21, 23, 24, 34, 44, 46]
    assert run.column("train/loss") == pytest.approx([3.0, 2.0, 1.0, 0.8] * 2)
    assert run.column("train/learning_rate") == [1e-3] * 8
    assert run.axes["score/*"] == run.axes["heldout/*"] == run.axes["probe/*"] == "stage"
    assert run.axes["train/*"] == "train/global_step"

    assert run.summary["figures/target_learning"] == 20
    assert run.summary["figures/heldout_forgetting/worst"] == -20
    assert run.summary["figures/heldout_forgetting/low"] == -22
    assert "figures/target_forgetting" not in run.summary
    assert (run.summary["plan/trainable"], run.summary["state"], run.exit) == (12, "done", 0)


def test_the_table_shows_answers_with_pictures_against_the_base(tmp_path: Path) -> None:
    log_job(open_tracker(make_config(tmp_path), tmp_path / "job"))
    run = Run(*run_files(tmp_path / "job"))
    tables = run.tables("answers")
    assert len(run.column("answers/path")) == 3
    assert [len(table["data"]) for table in tables] == [3, 3, 3]
    last = [dict(zip(tables[2]["columns"], row, strict=True)) for row in tables[2]["data"]]
    assert [(row["task"], row["sample"], row["change"]) for row in last] == [
        ("count", "s1", "turned right"),
        ("count", "s2", "same"),
        ("ai2d", "s1", "turned right"),
    ]
    assert (last[0]["base answer"], last[0]["answer"], last[0]["reference"]) == (
        "said 0",
        "said 2",
        "yes | y",
    )
    assert (last[0]["stage"], last[0]["trained"], last[0]["score"]) == (2, "clock", 100)
    assert last[0]["image"]["_type"] == "image-file"
    assert (last[0]["image"]["width"], last[0]["image"]["height"]) == (320, 240)
    assert last[1]["image"] is None


def test_a_stage_from_the_store_appears_and_artifacts_tell_the_lineage(tmp_path: Path) -> None:
    delta = tmp_path / "delta.safetensors"
    delta.write_bytes(b"tensors")
    tracker = open_tracker(make_config(tmp_path, artifacts="all"), tmp_path / "job")
    tracker.log_stage(make_stage_metrics(0))
    tracker.log_stage(make_stage_metrics(1, delta_path=delta))  # from the store: another job trained it
    log_training(tracker, 2)
    tracker.log_stage(make_stage_metrics(2, delta_path=delta, is_trained_here=True))
    tracker.log_stage(make_stage_metrics(0))  # something was damaged: everything is told once more
    tracker.log_stage(make_stage_metrics(1, delta_path=delta))
    tracker.log_stage(make_stage_metrics(2, delta_path=delta))
    tracker.close()
    run = Run(*run_files(tmp_path / "job"))
    assert run.steps() == ROWS
    assert run.column("train/loss") == pytest.approx([3.0, 2.0, 1.0, 0.8] * 2)
    assert run.column("train/grad_norm") == [1.0] * 4  # a record remembers the loss only
    kept = [artifact for artifact in run.artifacts if artifact.type in ("base", "stage")]
    names = [artifact.name for artifact in kept]
    assert names == ["base-weights0", "stage-1111111111111111", "stage-2222222222222222"]
    assert [artifact.use_after_commit for artifact in kept] == [True, True, False]  # two inputs, one output
    told = [json.loads(artifact.metadata) for artifact in kept]
    assert [each.get("parent") for each in told] == [None, names[0], names[1]]
    assert told[2]["lineage"] == names[:2]
    files = [[entry.path for entry in artifact.manifest.contents] for artifact in kept]
    assert files == [
        ["base.json"],
        ["delta.safetensors", "record.json"],
        ["delta.safetensors", "record.json"],
    ]


def test_a_resumed_job_is_one_run_with_every_row_once(tmp_path: Path) -> None:
    job, config = tmp_path / "job", make_config(tmp_path)
    first = open_tracker(config, job)
    first.log_stage(make_stage_metrics(0))
    log_training(first, 1)
    first.log_stage(make_stage_metrics(1))
    log_training(first, 2, last=15)
    first.close(KeyboardInterrupt())
    (left,) = run_files(job)
    before = Run(left)
    assert (before.exit, before.summary["state"]) == (255, "interrupted")
    assert before.steps() == [0, 1, 11, 21, 23, 24, 25, 35]

    again = open_tracker(config, job)
    again.log_stage(make_stage_metrics(0))
    again.log_stage(make_stage_metrics(1))  # from the store by now
    log_training(again, 2, first=11)  # from a checkpoint after step 10
    again.log_stage(make_stage_metrics(2))
    again.close()
    (path,) = run_files(job)
    run = Run(path)
    assert run.run.run_id == before.run.run_id
    assert run.steps() == ROWS
    assert run.column("train/grad_norm") == [1.0] * 8  # what the CSV files of the first start remember
    assert run.exit == 0
    assert not (job / "wandb" / "superseded").exists()


def test_wandb_sync_uploads_the_same(tmp_path: Path) -> None:
    log_job(open_tracker(make_config(tmp_path), tmp_path / "job"))
    (path,) = run_files(tmp_path / "job")
    run, server = Run(path), Server()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", str(path.parent)],
            env={**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
        )
    finally:
        server.close()
    assert done.returncode == 0, done.stdout + done.stderr
    kept = server.runs[run.run.run_id]
    assert (kept["name"], kept["group"], kept["exit"]) == ("job", "sweep", 0)
    rows = server.history(run.run.run_id)
    assert [row["_step"] for row in rows] == ROWS
    for row, read in zip(rows, run.rows, strict=True):
        assert {name: row[name] for name in row if "/" in name} == {
            name: read[name] for name in read if "/" in name and not name.startswith("answers/")
        }
    assert kept["summary"]["figures/target_learning"] == 20
    assert kept["config"]["recipe"]["value"] == {"name": "sa_proj"}
    assert len(server.used) == 1  # the base


def test_two_jobs_never_share_a_run(tmp_path: Path) -> None:
    """Names that are the same once W&B's characters are left, and a job of the same name elsewhere."""
    folders = [tmp_path / "a" / "rate=1.5", tmp_path / "a" / "rate=1~5", tmp_path / "b" / "rate=1.5"]
    for folder in folders:
        tracker = open_tracker(make_config(tmp_path, answers=0, artifacts="none"), folder)
        tracker.log_stage(make_stage_metrics(0, pictures={}))
        tracker.close()
    runs = [Run(*run_files(folder)) for folder in folders]
    assert len({run.run.run_id for run in runs}) == 3
    assert {run.run.run_group for run in runs} == {"sweep"}
    assert all(run.steps() == [0] for run in runs)


def test_a_failed_job_is_shown_as_such_and_artifacts_can_be_none(tmp_path: Path) -> None:
    tracker = open_tracker(make_config(tmp_path, artifacts="none", answers=0), tmp_path / "job")
    tracker.log_stage(make_stage_metrics(0, pictures={}))
    tracker.close(DataError("no images\nin sight"))
    run = Run(*run_files(tmp_path / "job"))
    assert (run.exit, run.summary["state"], run.summary["error"]) == (2, "failed", "no images")
    assert run.steps() == [0]
    assert not run.artifacts


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"name": "mlflow"}, "logger.name=mlflow is not known; choose one of: csv, wandb, none"),
        (
            {"mode": "sometimes"},
            "logger.mode=sometimes is not known; choose one of: online, offline, disabled",
        ),
        ({"artifacts": "some"}, "logger.artifacts=some is not known; choose one of: none, records, all"),
        ({"answers": -1}, "logger.answers=-1 cannot be used"),
        ({"timeout": 0}, "logger.timeout=0 cannot be used"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path: Path, node: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        open_tracker(make_config(tmp_path, **node), tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_disabled_leaves_csv_files_only(tmp_path: Path) -> None:
    assert log_job(open_tracker(make_config(tmp_path, mode="disabled"), tmp_path / "job")) == []
    assert run_files(tmp_path / "job") == []
    assert len((tmp_path / "job" / "training.csv").read_text().splitlines()) == 9
