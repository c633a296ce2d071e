"""What jobs read tells them apart; what an earlier version's record does not say is held against none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmm_forget.launch.job_folders import Job, _archive_previous_results
from lmm_forget.report.job_identity import have_comparable_scores, have_same_fingerprint
from lmm_forget.report.sweep_report import load_sweep_report
from lmm_forget.report.sweep_summary import write_sweep_summary


def read(results: dict[str, Any], labels: str) -> dict[str, Any]:
    """The record of a job that was scored by these references."""
    found = copy.deepcopy(results)
    asked = {"samples": 40, "split": "test", "fingerprint": "q", "references": labels}
    found["data"] = {task: {"evaluated": asked} for task in found["base"]["scores"]}
    found["base"]["fingerprints"] = {"config": "c"}
    return found


def test_other_references_are_noted_and_never_paired(
    make: Callable[..., dict[str, Any]], put: Callable[..., Path]
) -> None:
    old, one, two = make(job="old"), read(make(job="one"), "red"), read(make("llm", job="two"), "crimson")
    assert not have_same_fingerprint([one, two], "tiny_ai2d", "references") and not have_comparable_scores(one, two)
    assert have_same_fingerprint([old, one], "tiny_ai2d", "references")
    put(results=one)
    notes = write_sweep_summary(load_sweep_report(put(results=two)))["notes"]
    assert any("not scored by the same references of tiny_cub200" in note for note in notes)


def test_a_record_that_does_not_say_is_accused_of_nothing(
    make: Callable[..., dict[str, Any]], put: Callable[..., Path]
) -> None:
    put(results=make(job="old"))
    notes = write_sweep_summary(load_sweep_report(put(results=read(make("llm", job="new"), "red"))))["notes"]
    assert not any("same base model" in note or "references" in note for note in notes)


def test_former_results_never_go_where_others_lie(tmp_path: Path) -> None:
    (tmp_path / "previous-2").mkdir()
    for number in (1, 3):
        (tmp_path / "results.json").write_text(str(number))
        _archive_previous_results(Job("a", tmp_path, {}), ["the data of task mine"])
        assert (tmp_path / f"previous-{number}" / "results.json").read_text() == str(number)
