"""Figures that say how sure they are: what was compared with what, and when nothing can be said."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from lmm_forget.cli.compare import main as compare_main
from lmm_forget.metrics import TaskScores, compare_task_scores
from lmm_forget.report.sweep_report import load_sweep_report
from lmm_forget.report.sweep_summary import write_sweep_summary
from lmm_forget.run import main as run_main
from tests.field.inputs import job, read_rows, results, write_rows


def two(gained: int, lost: int, right: int, wrong: int, repeat: int = 1) -> TaskScores:
    """Answers of two models: how many turned right, turned wrong, stayed; `repeat` questions about each picture."""
    before = [0] * gained + [1] * lost + [1] * right + [0] * wrong
    after = [1] * gained + [0] * lost + [1] * right + [0] * wrong
    pictures = [f"p{i}" for i in range(len(before)) for _ in range(repeat)]
    return TaskScores("t", np.repeat(np.array([before, after], float), repeat, axis=1), pictures)


def test_two_models_on_the_same_questions_are_paired() -> None:
    """lm-evaluation-harness 3831: its comparison took two models' answers for independent, and saw nothing (p = 0.080).

    Right: the questions are the same, so only those that changed count (McNemar: p = 0.008 there).
    """
    scores = two(gained=14, lost=2, right=58, wrong=26)
    found = compare_task_scores(scores)
    p1, p2 = scores.values.mean(axis=1)
    unpaired = 2 * norm.sf(abs(p2 - p1) / math.sqrt((p1 * (1 - p1) + p2 * (1 - p2)) / 100))
    assert unpaired > 0.05 > found["p_value"]
    exact = 2 * sum(math.comb(16, k) for k in range(3)) / 2**16
    assert found["p_value"] == pytest.approx(exact) and (found["gained"], found["lost"]) == (14, 2)


def test_a_tie_is_called_a_tie(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """heypinchy/pinchy 797: two settings with the same answers were ranked, the first in the list was the winner.

    Right: no change, p = 1, and as many gained as lost is no change either.
    """
    assert compare_main([str(plain), str(plain), "format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for entry in found["benchmarks"].values():
        assert (entry["value"], entry["p_value"], entry["gained"], entry["lost"]) == (0, 1, 0, 0)
    even = compare_task_scores(two(gained=5, lost=5, right=10, wrong=10))
    assert even["value"] == 0 and even["p_value"] == 1 and even["low"] < 0 < even["high"]


def test_repeated_questions_are_no_more_evidence() -> None:
    """inspect_ai 1251 and 4161: ten questions about each picture made errors three times too small.

    Right: with every question asked ten times about its picture, p-value and interval stay what they were.
    """
    once, often = (compare_task_scores(two(6, 1, 20, 13, repeat=n)) for n in (1, 10))
    for key in ("value", "low", "high", "stderr", "p_value"):
        assert often[key] == pytest.approx(once[key]), key
    assert often["n"] == 400 and often["images"] == 40


def test_a_benchmark_of_one_question(own_home: Path) -> None:
    """lm-evaluation-harness 1395: with --limit 1 the standard error was the text "N/A", and the run crashed on it.

    Right: a figure without an interval; no NaN in any file, and the page is there.
    """
    done = job(own_home, f"model.path={own_home / 'model'}", "data.eval_samples=1", into="one")
    held_out = results(done)["figures"]["heldout_forgetting"]
    assert held_out["value"] is not None and held_out["low"] is None and held_out["high"] is None
    write_sweep_summary(load_sweep_report(done.parent))
    for path in [*done.parent.glob("*.json"), *done.glob("*.json")]:
        json.loads(path.read_text(), parse_constant=pytest.fail)
    assert "nan" not in (done.parent / "summary.md").read_text().lower()


def test_a_benchmark_that_is_named_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """lm-evaluation-harness PR 4172: a task that two groups shared had twice the weight in the mean over them.

    Right: refused in one line.
    """
    assert run_main(["experiment=smoke", "suite.tasks=[tiny_ai2d,tiny_docvqa,tiny_ai2d]"]) == 2
    error = capsys.readouterr().err
    assert "names tiny_ai2d more than once" in error and error.count("\n") == 1


def test_two_jobs_that_were_asked_other_questions(
    plain: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """lmms-eval 1006 and marin 8124: means over different questions were set side by side.

    Right: only what both were asked is compared, with the same references, and it says how much was left out.
    """
    rows = read_rows(own_home / "data.jsonl")
    write_rows(own_home / "data.jsonl", [{**row, "answer": row["answer"].upper() + "!"} for row in rows])
    other = job(own_home, f"model.path={own_home / 'model'}", "data.eval_samples=4", into="other")
    capsys.readouterr()
    assert compare_main([str(plain), str(other), "format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["benchmarks"]["tiny_ai2d"]["n"] == 4 and "mine" not in found["benchmarks"]
    notes = " ".join(found["notes"])
    assert "tiny_ai2d: 8 and 4 questions were evaluated" in notes and "mine" in notes
