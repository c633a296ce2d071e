"""What is logged: CSV rows that only grow, W&B runs that need no network."""

from __future__ import annotations

import csv
import json
import struct
import time

import pytest

from lmm_forget.errors import ConfigError
from lmm_forget.training.loggers import build_logger, close_logger, log_stage, log_training
from tests.training.lesson import teach


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_gets_training_rows_of_every_stage_and_its_figures(tmp_path):
    logger = build_logger({"name": "csv"}, tmp_path, "job")
    teach(training={"max_steps": 12}, logger=logger, task="first")
    log_stage(logger, 1, {"scores/count": 50.0, "scores/clock": 2.5})
    teach(training={"max_steps": 1}, logger=build_logger({"name": "csv"}, tmp_path, "job"), task="second")
    close_logger(logger)
    found = rows(tmp_path / "training.csv")
    assert [(r["task"], r["step"]) for r in found] == [
        ("first", "1"),
        ("first", "11"),
        ("first", "12"),
        ("second", "1"),
    ]
    assert all(
        float(r[c]) > 0 for r in found for c in ("loss", "learning_rate", "grad_norm", "samples_per_s")
    )
    assert rows(tmp_path / "stages.csv") == [
        {"stage": "1", "metric": "scores/count", "value": "50.0"},
        {"stage": "1", "metric": "scores/clock", "value": "2.5"},
    ]


def test_no_logger_and_unknown_loggers(tmp_path):
    assert build_logger({"name": "none"}, tmp_path, "job") is None
    log_training(None, "a", 1, {"loss": 1.0})
    log_stage(None, 1, {"x": 1.0})
    close_logger(None)
    with pytest.raises(ConfigError, match="logger=mlflow: unknown; use one of csv, wandb, none"):
        build_logger({"name": "mlflow"}, tmp_path, "job")
    with pytest.raises(ConfigError, match="logger.mode=sometimes: unknown"):
        build_logger({"name": "wandb", "mode": "sometimes"}, tmp_path, "job")
    assert list(tmp_path.iterdir()) == []


def finished_records(folder):
    """Every record of the one offline run under `folder`, once W&B's own process has written the last one."""
    deadline = time.monotonic() + 60
    while True:
        found = wandb_records(folder)
        if any(r.HasField("exit") for r in found):
            return found
        assert time.monotonic() < deadline, "the run was never finished"
        time.sleep(0.2)


def wandb_records(folder):
    """What the run's file holds: a 7-byte header, then records in 32 KiB blocks."""
    from wandb.proto import wandb_internal_pb2 as pb

    (path,) = [p for p in folder.rglob("run-*.wandb") if not p.parent.is_symlink()]
    data, at, parts, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's tail too short for another header
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(pb.Record.FromString(parts))
            parts = b""
    return found


def test_wandb_offline_needs_no_network_and_keeps_group_config_and_axes(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = {
        "name": "wandb",
        "project": "p",
        "group": "sweep",
        "job_type": "job",
        "config": {"recipe": {"name": "llm"}},
    }
    logger = build_logger(cfg, tmp_path, "sweep/llm-paper-0")
    teach(training={"max_steps": 2}, logger=logger)
    log_stage(logger, 1, {"scores/count": 50.0})
    close_logger(logger, exit_code=3)
    records = finished_records(tmp_path)
    run = next(r.run for r in records if r.HasField("run"))
    assert (run.project, run.run_group, run.job_type) == ("p", "sweep", "job")
    assert run.display_name == "llm-paper-0"
    config = {
        u.key: json.loads(u.value_json) for r in records if r.HasField("run") for u in r.run.config.update
    }
    assert config["recipe"] == {"name": "llm"}
    logged = [
        {("/".join(i.nested_key) or i.key): json.loads(i.value_json) for i in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    assert [(h["train/lesson/step"], h["train/lesson/loss"] > 0) for h in logged[:2]] == [
        (1, True),
        (2, True),
    ]
    assert (logged[2]["stage"], logged[2]["scores/count"]) == (1, 50.0)
    axes = {
        (r.metric.name or r.metric.glob_name): r.metric.step_metric for r in records if r.HasField("metric")
    }
    assert axes["scores/count"] == "stage"
    assert axes["train/lesson/*"] == "train/lesson/step"
    assert next(r.exit.exit_code for r in records if r.HasField("exit")) == 3
