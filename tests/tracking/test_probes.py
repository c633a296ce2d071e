"""Probe readings as curves, with whatever a reading lacks left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmm_forget.tracking import open_tracker
from lmm_forget.tracking.probe_metrics import (
    LAYER_COLUMNS,
    build_layer_rows,
    flatten_milestones,
    flatten_probe_readings,
)
from tests.tracking.fake_job import log_training, make_config, make_stage_metrics
from tests.tracking.run_reader import Run, run_files

SHIFT: dict[str, Any] = {
    "probe": "output_shift",
    "prompts": "tiny_captions",
    "mode": "forced",
    "mass": {"number": {"mean": 0.25, "low": 0.2, "high": 0.3, "max": 0.6}, "letter": {"mean": 0.1}},
    "entropy": 1.5,
    "nll": 2.5,
    "kl": 0.5,
    "js": 0.1,
    "agreement": 0.75,
}
FREE = {**SHIFT, "mode": "free", "kl": None, "nll": None, "js": None, "agreement": None}
RESIDUAL: dict[str, Any] = {
    "probe": "residual_to_logit",
    "prompts": "tiny_captions",
    "mode": "forced",
    "norm": {"attention": [1.0, 2.0], "mlp": [3.0, 6.0]},
    "shared": {"attention": [1.5, 2.5], "mlp": [3.5, 6.5]},
    "direct": None,
}
ASKED = {"step": 10, "readings": [{**SHIFT, "kl": 0.75}], "scores": {"ai2d": {"value": 81.0, "n": 4}}}
ENTRY = {
    "readings": [SHIFT, FREE, RESIDUAL],
    "milestones": [{"step": 1, "readings": [SHIFT]}, ASKED],
    "alarm": {"step": 20, "figure": "kl", "bound": 0.1, "value": 0.2, "action": "warn"},
}


def test_curves_have_the_names_of_the_record() -> None:
    curves = flatten_probe_readings(ENTRY)
    assert curves["probe/tiny_captions/forced/number_mass"] == 0.25
    assert curves["probe/tiny_captions/forced/kl"] == 0.5
    assert curves["probe/tiny_captions/free/entropy"] == 1.5
    assert "probe/tiny_captions/free/kl" not in curves
    assert curves["probe/tiny_captions/forced/nll"] == 2.5
    assert curves["probe/alarm/step"] == 20
    assert curves["probe/tiny_captions/norm/attention"] == pytest.approx(1.5)
    assert curves["probe/tiny_captions/norm/mlp"] == pytest.approx(4.5)
    assert [(step, figures["probe/tiny_captions/forced/kl"]) for step, figures in flatten_milestones(ENTRY)] == [
        (1, 0.5),
        (10, 0.75),
    ]


def test_layers_are_rows() -> None:
    rows = [dict(zip(LAYER_COLUMNS, row, strict=True)) for row in build_layer_rows(3, ENTRY)]
    assert len(rows) == 4
    assert rows[-1] == {
        "stage": 3,
        "prompts": "tiny_captions",
        "block": "mlp",
        "layer": 1,
        "norm": 6.0,
        "shared": 6.5,
        "folded": None,
        "direct": None,
    }


@pytest.mark.parametrize("entry", [None, {}, {"readings": []}, {"readings": [{"probe": "unheard_of"}]}])
def test_nothing_recorded_is_nothing_shown(entry: dict[str, Any] | None) -> None:
    assert flatten_probe_readings(entry) == {}
    assert flatten_milestones(entry) == []
    assert build_layer_rows(1, entry) == []


def test_curves_and_milestones_reach_the_run_on_their_axes(tmp_path: Path) -> None:
    config = {**make_config(tmp_path), "probe": {"name": "both", "at_steps": [1, 10, 100]}}
    tracker = open_tracker(config, tmp_path / "job")
    tracker.log_stage(make_stage_metrics(0, probes={"readings": [SHIFT]}))
    log_training(tracker, 1)
    tracker.log_stage(make_stage_metrics(1, probes=ENTRY))
    tracker.log_stage(make_stage_metrics(2, probes={**ENTRY, "milestones": [], "missing_steps": [1, 10]}))
    tracker.close()
    run = Run(*run_files(tmp_path / "job"))
    assert run.column("probe/tiny_captions/forced/kl") == [0.5, 0.5, 0.5]
    told = [row for row in run.rows if "milestone/tiny_captions/forced/kl" in row]
    assert [(row["train/global_step"], row["milestone/tiny_captions/forced/kl"]) for row in told] == [
        (1, 0.5),
        (10, 0.75),
    ]
    assert run.column("milestone/score/ai2d") == [81]
    assert run.axes["milestone/*"] == "train/global_step"
    # Room for three milestones whether they were had or not, so that the rows of a resumed job keep their numbers.
    assert [row["_step"] for row in run.rows if "stage" in row] == [0, 27, 54]
    assert len(run.tables("probe_layers")) == 2
    assert "probe/tiny_captions/forced/kl" in (tmp_path / "job" / "stages.csv").read_text()
