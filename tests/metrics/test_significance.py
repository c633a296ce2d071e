"""McNemar's test and paired changes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from lmm_forget.errors import DataError
from lmm_forget.metrics import TaskScores, estimate_paired_change, run_mcnemar_test


def pair(gained: int, lost: int, same: int = 10) -> tuple[list[int], list[int]]:
    """Right/wrong before and after with the given numbers of changed answers."""
    return [0] * gained + [1] * lost + [1] * same, [1] * gained + [0] * lost + [1] * same


def test_few_changes_are_tested_exactly() -> None:
    result = run_mcnemar_test(*pair(1, 8))
    assert (result["gained"], result["lost"], result["n"], result["method"]) == (1, 8, 19, "exact")
    assert result["p_value"] == pytest.approx(2 * (1 + 9) / 2**9)


def test_many_changes_use_the_corrected_chi_square() -> None:
    result = run_mcnemar_test(*pair(15, 35))
    assert result["method"] == "chi2"
    assert result["p_value"] == pytest.approx(0.00720, abs=5e-5)  # (20 - 1)^2 / 50 = 7.22 on one degree of freedom
    assert run_mcnemar_test(*pair(20, 20))["p_value"] == 1.0


def test_no_change_is_no_evidence() -> None:
    assert run_mcnemar_test(*pair(0, 0))["p_value"] == 1.0


@pytest.mark.parametrize(
    ("before", "after", "words"), [([0, 1], [1], "pairs 2 samples with 1"), ([0.5, 1], [1, 1], "0 or 1")]
)
def test_unfit_scores_are_refused(before: list, after: list, words: str) -> None:
    with pytest.raises(DataError, match=words):
        run_mcnemar_test(before, after)


def test_paired_change_with_its_test() -> None:
    before, after = pair(2, 12, 26)
    task = TaskScores("x", np.array([before, before, after], dtype=float), [str(i) for i in range(40)])
    change = estimate_paired_change(task, 1, 2)
    assert change["value"] == -25.0
    assert change["low"] < -25.0 < change["high"] < 0
    assert change["mcnemar"] == run_mcnemar_test(before, after)
    assert estimate_paired_change(task, 0, 1) == {
        "value": 0.0,
        "low": 0.0,
        "high": 0.0,
        "mcnemar": run_mcnemar_test(before, before),
    }
    with pytest.raises(DataError, match="no stage 3, there are 0 .base. to 2"):
        estimate_paired_change(task, 0, 3)


def test_partial_scores_get_an_interval_only() -> None:
    task = TaskScores("x", np.array([[1.0, 0.5, 0.75], [0.5, 0.5, 0.25]]), ["i", "j", "k"])
    assert estimate_paired_change(task, 0, 1)["mcnemar"] is None


def test_metrics_and_reports_need_no_model_library() -> None:
    code = (
        "import sys, lmm_forget.metrics, lmm_forget.report.sweep_summary, lmm_forget.report.flip_examples; "
        "print(sorted({'torch', 'transformers', 'lightning', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
