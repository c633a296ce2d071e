"""Correlations between shift and forgetting, and the formats that wrong answers take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from lmm_forget.errors import DataError
from lmm_forget.metrics.answer_flips import classify_answer_format, collect_wrong_flips, count_answer_flips
from lmm_forget.metrics.forgetting_statements import describe_resampling, judge_forgetting_statements
from lmm_forget.metrics.shift_correlation import compute_correlations, correlate_shift_with_forgetting


def test_values_are_scipys_and_intervals_resample_runs() -> None:
    rng = np.random.default_rng(1)
    runs = [f"r{i // 5}" for i in range(30)]
    x = rng.normal(size=30) + np.repeat(rng.normal(size=6) * 3, 5)
    y = -x + rng.normal(size=30) * 0.1 + np.repeat(rng.normal(size=6), 5)
    found = compute_correlations(x, y, runs)
    assert found["pearson"]["value"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found["spearman"]["value"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert (found["n"], found["runs"]) == (30, 6)
    assert found["pearson"]["low"] <= found["pearson"]["value"] <= found["pearson"]["high"]
    alone = compute_correlations(x, y, [str(i) for i in range(30)])

    def width(entry: dict[str, Any]) -> float:
        return entry["pearson"]["high"] - entry["pearson"]["low"]

    assert width(found) > width(alone)  # points of a run move together: pretending otherwise looks too sure


def test_runs_of_unequal_length_are_drawn_the_same_way() -> None:
    """The quick way for equal runs, and the other one, give what drawing by hand gives."""
    rng = np.random.default_rng(3)
    for sizes in ([4, 4, 4], [4, 5, 3]):
        runs = [f"r{k}" for k, n in enumerate(sizes) for _ in range(n)]
        x, y = rng.integers(0, 5, size=12).astype(float), rng.normal(size=12)
        members = [[i for i in range(12) if runs[i] == f"r{k}"] for k in range(3)]
        picks = np.random.default_rng(0).integers(0, 3, size=(40, 3))
        drawn = [[i for k in pick for i in members[k]] for pick in picks]
        by_hand = [stats.spearmanr(x[at], y[at]).statistic for at in drawn if np.ptp(x[at]) > 0]
        found = compute_correlations(x, y, runs, num_resamples=40)["spearman"]
        assert [found["low"], found["high"]] == pytest.approx(np.quantile(by_hand, [0.025, 0.975]))


@pytest.mark.parametrize(
    ("x", "y", "value"), [([1, 2], [1, 2], None), ([1, 1, 1], [1, 2, 3], None), ([1, 2, 3], [3, 2, 1], -1.0)]
)
def test_what_has_no_correlation_says_so(x: list[float], y: list[float], value: float | None) -> None:
    found = compute_correlations(x, y, ["a"] * len(x))
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
    found = correlate_shift_with_forgetting([*jobs, {"job": {"job": "unprobed"}}])
    (shift,) = found["shifts"]
    figure = shift["figures"]["number_mass"]["heldout"]
    assert figure["pearson"]["value"] == pytest.approx(-1.0)
    assert (figure["n"], figure["runs"], found["jobs"]) == (5, 2, 2)
    back = shift["recovery"]["number_mass"]
    assert [back[k] for k in ("recovered", "shift_went_back", "p", "fell", "shift_grew")] == [1, 1, 1.0, 2, 2]
    (rise,) = back["rises"]
    assert (rise["job"], rise["stage"], rise["heldout"]) == ("x", 3, 20.0)
    assert rise["distance"] == pytest.approx(-0.2) and back["changes"]["n"] == 3
    assert back["changes"]["pearson"]["value"] == pytest.approx(-1.0)
    assert shift["base"] == pytest.approx({"number_mass": 0.1, "nll": 0.2, "entropy": 1.0})
    assert shift["figures"]["number_mass"]["nll"]["pearson"]["value"] == pytest.approx(1.0)
    assert found["points"][0]["shift"]["captions/forced"]["number_mass"] == pytest.approx(0.1)
    share = {"early_attention": 0.0, "late_attention": 0.25, "early_mlp": 0.25, "late_mlp": 0.5}
    assert found["layers"][0]["folded"] == share


def up_and_down(name: str, sign: float, wrong: bool = False) -> dict[str, Any]:
    """A job that forgets, recovers, forgets, recovers; its shift moves along (or, where `wrong`, the other way)."""
    course = [(0.30, 60.0), (0.25, 70.0), (0.40, 40.0), (0.35, 50.0)]
    return job(name, [(0.1 + sign * ((0.5 - m) if wrong else m), score) for m, score in course])


def verdicts(jobs: list[dict[str, Any]], number: int, figure: str) -> list[str]:
    said = judge_forgetting_statements(correlate_shift_with_forgetting(jobs, num_resamples=50))[number - 1]
    return [one["verdict"] for one in said["evidence"] if one["figure"] == figure]


def test_statements_are_as_sure_as_the_sweep_is_large() -> None:
    six = [up_and_down(f"r{k}", 1 + k / 10) for k in range(6)]
    assert verdicts(six, 1, "number_mass") == verdicts(six, 2, "number_mass") == ["holds here"]
    # twelve rises, each with a smaller distance from the base, on whichever side of it
    assert verdicts([up_and_down(f"r{k}", -1) for k in range(6)], 2, "number_mass") == ["holds here"]
    against = [up_and_down(f"r{k}", 1, wrong=True) for k in range(6)]
    assert verdicts(against, 1, "number_mass") == verdicts(against, 2, "number_mass") == ["does not hold here"]
    assert verdicts(six[:3], 1, "number_mass") == ["a hint that it holds"]
    assert verdicts(six[:2], 1, "number_mass") == ["not shown here"]  # no interval
    few = judge_forgetting_statements(correlate_shift_with_forgetting(six[:2], num_resamples=50))[1]["evidence"][0]
    assert few["verdict"] == "not shown here" and "4 of 4 stages" in few["why"] and "too few" in few["why"]
    told = [describe_resampling({"jobs": n, "points": [{"recipe": "r0"}, {"recipe": "r1"}]}) for n in (2, 4, 12)]
    assert "only 2 jobs" in told[0] and "of 2 recipes" in told[1]
    assert ["hint" in text for text in told] == [False, True, False]


def test_late_mlp_is_judged_per_recipe() -> None:
    three = judge_forgetting_statements(
        correlate_shift_with_forgetting([job("x", [(0.2, 80.0)] * 3), job("y", [(0.2, 80.0)])], num_resamples=10)
    )[2]
    assert [(one["recipe"], one["verdict"]) for one in three["evidence"]] == [
        ("x", "holds here"),
        ("y", "holds here"),
    ]
    other = job("z", [(0.2, 80.0)])
    for reading in other["stages"][0]["probes"]["readings"][1:]:
        reading["folded"] = {"attention": [0.0, 3.0], "mlp": [1.0, 2.0]}
    (found,) = judge_forgetting_statements(correlate_shift_with_forgetting([other], num_resamples=10))[2]["evidence"]
    assert found["verdict"] == "does not hold here" and "0 of 1 stages" in found["why"]


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
    assert classify_answer_format(text) == kind


def answer(i: int, text: str, value: float) -> dict[str, Any]:
    whole = {"image_id": "m", "question": "q", "references": ("r",)}
    return {"sample_id": str(i), "text": text, "value": value, **whole}


def test_what_turned_wrong_is_counted_by_what_is_said_instead() -> None:
    before = [answer(0, "B", 1.0), answer(1, "red", 1.0), answer(2, "C", 0.0), answer(3, "4", 1.0)]
    after = [answer(0, "4", 0.0), answer(1, "2", 0.0), answer(2, "A", 1.0), answer(3, "5", 0.0)]
    found = count_answer_flips("t", before, after)
    assert (found["n"], found["right_before"], found["right_to_wrong"], found["wrong_to_right"]) == (4, 3, 3, 1)
    assert found["answer_format"]["number"] == 3 and found["changed_formats"]["number"] == 2
    assert [row["before"] for row in collect_wrong_flips("t", before, after)] == ["B", "red", "4"]
    with pytest.raises(DataError, match="same samples"):
        count_answer_flips("t", before, after[1:])
