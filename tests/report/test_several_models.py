"""A sweep over models: what was learned and lost is compared within each, and drawn beside each other."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from lmm_forget.report import build_job_rows, load_sweep
from lmm_forget.report.experiment_settings import group_rows_by_setting, group_settings_by_model
from lmm_forget.report.plots import (
    PLOT_STYLE,
    matplotlib,
    plot_heldout_per_stage,
    plot_learning_vs_forgetting,
)
from lmm_forget.report.setting_differences import compare_settings_to_reference
from lmm_forget.report.sweep_report import load_sweep_report
from lmm_forget.report.sweep_summary import write_sweep_summary
from lmm_forget.report.verdict import format_sweep_answer, format_sweep_question

Make = Callable[..., dict[str, Any]]
Put = Callable[..., Path]
MODELS = {"tiny_next": 0.15, "tiny_onevision": 0.05}


@pytest.fixture
def results(make: Make) -> list[dict[str, Any]]:
    """Two models, each with its base; in both `mlp` loses half of what `llm` does, and learns less."""
    found = []
    for model, loss in MODELS.items():
        for recipe, share, gain in (("llm", 1.0, 0.8), ("mlp", 0.5, 0.5)):
            one = make(recipe, loss=loss * share, gain=gain, job=f"{model}-{recipe}")
            one["config"]["model"]["name"] = model
            one["base"]["weights_hash"] = model
            found.append(one)
    return found


def test_rows_stand_by_model_and_say_which(results: list[dict[str, Any]]) -> None:
    rows = build_job_rows([results[2], results[0], results[3], results[1]])
    assert [row.label for row in rows] == [
        "llm, tiny_onevision",
        "mlp, tiny_onevision",
        "llm, tiny_next",
        "mlp, tiny_next",
    ]
    assert [row.label_within_model for row in rows] == ["llm", "mlp"] * 2
    assert [len(group) for group in group_settings_by_model(group_rows_by_setting(rows))] == [2, 2]
    assert {row.label for row in build_job_rows(results[:2])} == {"llm", "mlp"}  # one model needs no name


def test_each_model_has_an_answer_of_its_own(results: list[dict[str, Any]]) -> None:
    settings = group_rows_by_setting(build_job_rows(results))
    assert format_sweep_question(settings).endswith("without forgetting what each model knew?")
    lines = format_sweep_answer(settings).split("\n")
    assert [line.partition(":")[0] for line in lines] == list(MODELS)
    assert all("mlp forgot least" in line and "llm learned most" in line for line in lines)
    assert "tiny_" not in lines[0].partition(":")[2]


def test_differences_are_taken_within_a_model(results: list[dict[str, Any]], put: Put) -> None:
    for one in results:
        root = put(results=one)
    sweep = load_sweep(root)
    found = compare_settings_to_reference(sweep, group_rows_by_setting(build_job_rows(sweep.results.values())))
    assert [(each.name, each.against) for each in found] == [(f"llm, {model}", f"mlp, {model}") for model in MODELS]
    assert all(each.basis == "questions" and each.final and each.final["value"] < 0 for each in found)
    summary = write_sweep_summary(load_sweep_report(root))
    page = (root / "summary.html").read_text(encoding="utf-8")
    assert page.count("<th>minus mlp, ") == 2 and "not the same questions" not in page
    assert page.count("◆</span>") == 4  # each model has its own trade-offs: in both, llm learned more and mlp kept more
    written = (root / "summary.md").read_text(encoding="utf-8")
    assert all(f"\n- {line}" in written for line in summary["answer"].split("\n"))


@pytest.mark.parametrize("draw", [plot_learning_vs_forgetting, plot_heldout_per_stage])
def test_every_model_has_a_panel_and_the_legend_leaves_room(draw: Any, results: list[dict[str, Any]]) -> None:
    figure = draw(group_rows_by_setting(build_job_rows(results)))
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(MODELS)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:2] == ["llm", "mlp"] and len(names) == len(set(names))
    colours = [[c.lines[0].get_color() for c in axes.containers] for axes in figure.axes]
    assert colours[0] == colours[1] and len(set(colours[0])) == 2  # a recipe looks the same everywhere


@pytest.mark.parametrize("number", [1, 12, 24])
def test_many_names_in_the_legend_do_not_crush_the_picture(number: int, make: Make) -> None:
    rows = build_job_rows([make(f"a_recipe_with_quite_a_long_name_{i}", n=4) for i in range(number)])
    figure = plot_learning_vs_forgetting(group_rows_by_setting(rows))
    with matplotlib.rc_context(PLOT_STYLE):
        figure.savefig(BytesIO(), format="png")
    (axes,) = figure.axes
    inches = axes.get_position().height * figure.get_figheight()
    assert inches > 1.7
