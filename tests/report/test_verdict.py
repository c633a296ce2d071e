"""The sentences at the head of a sweep's page: each says what the figures say, in every case there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmm_forget.report import build_job_rows
from lmm_forget.report.experiment_settings import group_rows_by_setting
from lmm_forget.report.setting_differences import SettingDifference
from lmm_forget.report.sweep_report import load_sweep_report
from lmm_forget.report.sweep_summary import write_sweep_summary
from lmm_forget.report.verdict import format_sweep_answer, format_sweep_question

Make = Callable[..., dict[str, Any]]
Put = Callable[..., Path]
LEARNED, LITTLE, CHANCE, WORSE = (30.0, 25.0, 35.0), (12.0, 8.0, 16.0), (1.0, -2.0, 4.0), (-9.0, -12.0, -6.0)
KEPT, GAINED, LOST, LOST_MORE = (-0.4, -2.0, 1.2), (2.0, 1.0, 3.0), (-5.0, -7.0, -3.0), (-20.0, -23.0, -17.0)
KEYS = ("value", "low", "high")


def told(make: Make, **jobs: tuple[tuple[float, ...], tuple[float, ...] | None]) -> str:
    return format_sweep_answer(group_rows_by_setting(build_job_rows(records(make, **jobs))))


def records(make: Make, **jobs: tuple[tuple[float, ...], tuple[float, ...] | None]) -> list[dict[str, Any]]:
    found = []
    for recipe, (learning, final) in jobs.items():
        record = make(recipe)
        record["figures"]["target_learning"] = dict(zip(KEYS, learning, strict=True))
        held = dict(zip(KEYS, final or (None,) * 3, strict=True))
        record["figures"]["heldout_forgetting"] |= held if final else {**held, "per_stage": []}
        found.append(record)
    return found


ANSWERS = {
    "nothing learned": (
        {"llm": (CHANCE, LOST), "mlp": (WORSE, KEPT)},
        "None learned more than chance allows (best: llm, +1.0 points).",
    ),
    "all worse": (
        {"llm": (WORSE, LOST), "mlp": ((-20.0, -22.0, -18.0), KEPT)},
        "None: all got worse at what was trained (best: llm, -9.0 points).",
    ),
    "alone, chance": ({"llm": (CHANCE, KEPT)}, "It learned no more than chance allows (llm: +1.0 points)."),
    "alone, worse": ({"llm": (WORSE, KEPT)}, "It got worse at what was trained (best: llm, -9.0 points)."),
    "alone, kept": (
        {"llm": (LEARNED, KEPT)},
        "It learned +30.0 points and kept its held-out mean (-0.4, within chance).",
    ),
    "alone, gained": (
        {"llm": (LEARNED, GAINED)},
        "It learned +30.0 points and gained 2.0 points on the held-out benchmarks.",
    ),
    "alone, lost": (
        {"llm": (LEARNED, LOST)},
        "It learned +30.0 points and lost 5.0 of 94.2 points on the held-out benchmarks.",
    ),
    "alone, nothing held out": (
        {"llm": (LEARNED, None)},
        "llm learned +30.0 points; nothing was held out, so what it cost is unknown.",
    ),
    "alone, nothing learned, nothing held out": (
        {"llm": (CHANCE, None)},
        "It learned no more than chance allows (llm: +1.0 points); nothing was held out, so what it cost is unknown.",
    ),
    "nothing learned, nothing held out": (
        {"llm": (CHANCE, None), "mlp": (CHANCE, None)},
        "None learned more than chance allows (best: llm, +1.0 points); nothing was held out, so what it cost is "
        "unknown.",
    ),
    "one keeps, one loses": (
        {"llm": (LEARNED, LOST), "mlp": (LITTLE, KEPT)},
        "mlp: it learned +12.0 points and kept its held-out mean (-0.4, within chance). llm learned +30.0 points, but "
        "lost 5.0 of 94.2 points on the held-out benchmarks.",
    ),
    "one keeps, the other does not learn": (
        {"llm": (LEARNED, KEPT), "mlp": (CHANCE, KEPT)},
        "llm: it learned +30.0 points and kept its held-out mean (-0.4, within chance).",
    ),
    "all lose, the same is best at both": (
        {"llm": (LEARNED, LOST), "mlp": (LITTLE, LOST_MORE)},
        "None. llm forgot least: it learned +30.0 points and lost 5.0 of 94.2 points on the held-out benchmarks. No "
        "other learned more.",
    ),
    "all lose": (
        {"llm": (LEARNED, LOST_MORE), "mlp": (LITTLE, LOST)},
        "None. mlp forgot least: it learned +12.0 points and lost 5.0 of 94.2 points on the held-out benchmarks. llm "
        "learned most, +30.0 points, and lost 20.0 of 94.2 points on the held-out benchmarks.",
    ),
    "who did not learn forgot least": (
        {"vision": (CHANCE, KEPT), "llm": (LEARNED, LOST)},
        "None. llm alone learned more than chance allows: it learned +30.0 points and lost 5.0 of 94.2 points on the "
        "held-out benchmarks.",
    ),
    "two learned and lost, a third did neither": (
        {"vision": (CHANCE, KEPT), "llm": (LEARNED, LOST_MORE), "mlp": (LITTLE, LOST)},
        "None. Of those that learned, mlp forgot least: it learned +12.0 points and lost 5.0 of 94.2 points on the "
        "held-out benchmarks. llm learned most, +30.0 points, and lost 20.0 of 94.2 points on the held-out "
        "benchmarks.",
    ),
    "one of two without held-out figures": (
        {"llm": (LEARNED, LOST), "mlp": (LITTLE, None)},
        "None. llm forgot least: it learned +30.0 points and lost 5.0 of 94.2 points on the held-out benchmarks.",
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_every_answer_says_what_the_figures_say(case: str, make: Make) -> None:
    jobs, expected = ANSWERS[case]
    assert told(make, **jobs) == expected


def test_a_lead_within_chance_is_no_lead_but_only_against_the_one_named(make: Make) -> None:
    jobs = {"vision": (CHANCE, KEPT), "llm": (LEARNED, LOST_MORE), "mlp": (LITTLE, LOST)}
    settings = group_rows_by_setting(build_job_rows(records(make, **jobs)))
    gap = {"value": 18.0, "low": -1.0, "high": 37.0, "p_value": 0.06, "p_holm": 0.06}
    against = [SettingDifference("llm", gap, gap, "questions", name) for name in ("mlp", "vision")]
    assert format_sweep_answer(settings, against[:1]).endswith("No other learned more beyond chance.")
    assert "llm learned most" in format_sweep_answer(settings, against[1:])  # that gap is to another setting


def test_models_with_one_setting_each_are_asked_about_as_models(make: Make) -> None:
    found = records(make, llm=(LEARNED, LOST)) + records(make, llm=(CHANCE, KEPT))
    found[1]["config"]["model"]["name"], found[1]["base"]["weights_hash"] = "tiny_next", "other"
    settings = group_rows_by_setting(build_job_rows(found))
    assert format_sweep_question(settings) == (
        "What did each model learn when trained on 5 skills one after another, and what did it forget?"
    )
    assert [line.partition(": ")[2][:12] for line in format_sweep_answer(settings).split("\n")] == [
        "It learned +",
        "It learned n",
    ]


def test_the_page_says_it(make: Make, put: Put) -> None:
    folders = [put(results=record) for record in records(make, llm=(CHANCE, LOST), mlp=(WORSE, KEPT))]
    content = write_sweep_summary(load_sweep_report(folders[0]))
    expected = "None learned more than chance allows (best: llm, +1.0 points)."
    assert content["answer"] == expected
    for name in ("summary.html", "summary.md"):
        assert expected in (folders[0] / name).read_text()
