"""Correlations between shift and forgetting, and the formats that wrong answers take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from lmm_forget.errors import DataError
from lmm_forget.metrics.connection import connection, correlate
from lmm_forget.metrics.turned import answer_kind, turned_rows, turned_wrong


def test_values_are_scipys_and_intervals_resample_runs() -> None:
    rng = np.random.default_rng(1)
    runs = [f"r{i // 5}" for i in range(30)]
    x = rng.normal(size=30) + np.repeat(rng.normal(size=6) * 3, 5)
    y = -x + rng.normal(size=30) * 0.1 + np.repeat(rng.normal(size=6), 5)
    found = correlate(x, y, runs)
    assert found["pearson"]["value"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found["spearman"]["value"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert (found["n"], found["runs"]) == (30, 6)
    assert found["pearson"]["low"] <= found["pearson"]["value"] <= found["pearson"]["high"]
    alone = correlate(x, y, [str(i) for i in range(30)])

    def width(entry: dict[str, Any]) -> float:
        return entry["pearson"]["high"] - entry["pearson"]["low"]

    assert width(found) > width(alone)  # points of a run move together: pretending otherwise looks too sure


@pytest.mark.parametrize(
    ("x", "y", "value"), [([1, 2], [1, 2], None), ([1, 1, 1], [1, 2, 3], None), ([1, 2, 3], [3, 2, 1], -1.0)]
)
def test_what_has_no_correlation_says_so(x: list[float], y: list[float], value: float | None) -> None:
    found = correlate(x, y, ["a"] * len(x))
    assert found["pearson"]["value"] == value
    assert found["pearson"]["low"] is None


def reading(mass: float, kl: float | None) -> dict[str, Any]:
    return {
        "probe": "output_shift",
        "prompts": "captions",
        "mode": "forced",
        "mass": {"number": {"mean": mass}},
        "entropy": 1.0,
        "nll": mass * 2,
        "kl": kl,
        "js": kl,
    }


def job(name: str, steps: list[tuple[float, float]]) -> dict[str, Any]:
    """A job whose stages have (number mass, held-out score)."""
    blocks = {"attention": [0.0, 1.0], "mlp": [1.0, 2.0]}
    deep = {
        "probe": "residual_to_logit",
        "prompts": "captions",
        "norm": blocks,
        "folded": blocks,
        "direct": blocks,
    }
    return {
        "job": {"job": name},
        "config": {"recipe": {"name": name}, "seed": 0, "suite": {"tasks": ["b"]}},
        "probes": {},
        "base": {"scores": {"b": {"value": 90.0}}, "probes": {"readings": [reading(0.1, 0.0)]}},
        "stages": [
            {
                "index": i,
                "task": f"t{i}",
                "scores": {"b": {"value": score}},
                "probes": {"readings": [reading(mass, mass), deep], "milestones": []},
            }
            for i, (mass, score) in enumerate(steps, start=1)
        ],
    }


def test_a_sweep_s_connection() -> None:
    jobs = [job("x", [(0.2, 80.0), (0.5, 50.0), (0.3, 70.0)]), job("y", [(0.15, 85.0), (0.4, 60.0)])]
    found = connection([*jobs, {"job": {"job": "unprobed"}}])
    (shift,) = found["shifts"]
    figure = shift["figures"]["number_mass"]["heldout"]
    assert figure["pearson"]["value"] == pytest.approx(-1.0)
    assert (figure["n"], figure["runs"], found["jobs"]) == (5, 2, 2)
    assert shift["recovery"]["number_mass"] == {"recovered": 1, "shift_went_back": 1}
    assert shift["figures"]["number_mass"]["nll"]["pearson"]["value"] == pytest.approx(1.0)
    assert found["points"][0]["shift"]["captions/forced"]["number_mass"] == pytest.approx(0.1)
    share = {"early_attention": 0.0, "late_attention": 0.25, "early_mlp": 0.25, "late_mlp": 0.5}
    assert found["layers"][0]["folded"] == share


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("There are 4 stars in this image.", "number"),
        ("seventeen", "number"),
        ("someone", "other"),
        ("10:45", "clock"),
        ("B", "letter"),
        ("(C).", "letter"),
        ("Yes, it is", "yes_no"),
        ("nothing", "other"),
        ("a red circle", "other"),
        ("", "other"),
    ],
)
def test_answers_have_a_format(text: str, kind: str) -> None:
    assert answer_kind(text) == kind


def answer(i: int, text: str, value: float) -> dict[str, Any]:
    whole = {"image_id": "m", "question": "q", "references": ("r",)}
    return {"sample_id": str(i), "text": text, "value": value, **whole}


def test_what_turned_wrong_is_counted_by_what_is_said_instead() -> None:
    before = [answer(0, "B", 1.0), answer(1, "red", 1.0), answer(2, "C", 0.0), answer(3, "4", 1.0)]
    after = [answer(0, "4", 0.0), answer(1, "2", 0.0), answer(2, "A", 1.0), answer(3, "5", 0.0)]
    found = turned_wrong("t", before, after)
    assert (found["n"], found["right_before"], found["turned_wrong"], found["turned_right"]) == (4, 3, 3, 1)
    assert found["said"]["number"] == 3 and found["said_instead"]["number"] == 2
    assert [row["before"] for row in turned_rows("t", before, after)] == ["B", "red", "4"]
    with pytest.raises(DataError, match="same samples"):
        turned_wrong("t", before, after[1:])
