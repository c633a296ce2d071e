"""What readers see of the probes: the scatter plot, the tables, a job's own pictures."""

from __future__ import annotations

import re
from typing import Any

from lmm_forget.metrics.forgetting_statements import judge_forgetting_statements
from lmm_forget.metrics.shift_correlation import correlate_shift_with_forgetting
from lmm_forget.report.job_probe_plots import plot_layers_per_stage, plot_shift_per_stage
from lmm_forget.report.plots import render_svg
from lmm_forget.report.shift_report import plot_shift_scatter, render_shift_report


def shift(mass: float, mode: str) -> dict[str, Any]:
    own = mode == "free"
    return {
        "probe": "output_shift",
        "prompts": "tiny_captions",
        "mode": mode,
        "mass": {"number": {"mean": mass}, "trained:tiny_pixmocount": {"mean": 2 * mass}},
        "entropy": 1.0,
        "nll": None if own else 3 * mass,
        "kl": None if own else mass,
        "js": None if own else mass,
    }


def readings(mass: float) -> list[dict[str, Any]]:
    written = {"attention": [0.1, mass], "mlp": [0.2, 2 * mass]}
    deep = {"probe": "residual_to_logit", "prompts": "tiny_captions", "mode": "forced"}
    return [
        shift(mass, "free"),
        shift(mass, "forced"),
        {**deep, **dict.fromkeys(("norm", "folded", "direct"), written)},
    ]


def job(recipe: str, bend: float) -> dict[str, Any]:
    """Two skills, a milestone in the second; the held-out mean falls, then rises as the shift goes back."""

    def stage(index: int, task: str, mass: float, score: float, milestones: list[Any]) -> dict[str, Any]:
        scores = {"b": {"value": score}}
        probes = {"readings": readings(mass), "milestones": milestones}
        return {"index": index, "task": task, "steps": 100, "scores": scores, "probes": probes}

    within = {"step": 10, "readings": readings(bend), "scores": {"b": {"value": 55.0}}}
    return {
        "job": {"job": f"{recipe}-seed=0"},
        "config": {"recipe": {"name": recipe}, "seed": 0, "suite": {"tasks": ["b"]}},
        "probes": {},
        "base": {"scores": {"b": {"value": 90.0}}, "probes": {"readings": readings(0.1), "milestones": []}},
        "stages": [
            stage(1, "tiny_cub200", 0.1 + bend, 50.0, []),
            stage(2, "tiny_pixmocount", 0.1 + bend / 2, 70.0, [within]),
        ],
    }


def test_the_scatter_plot_tells_models_and_milestones_apart() -> None:
    found = correlate_shift_with_forgetting([job("llm", 0.4), job("mlp", 0.2)], num_resamples=10)
    figure = plot_shift_scatter(found)
    assert figure is not None
    text = render_svg(figure)
    assert len(figure.axes) == 4 and "hollow: within a stage" in text
    tips = re.findall(r'id="tip:([^"]*)"', text)
    assert len(tips) == 4 * 2 * 3
    assert "llm seed 0, pixmocount, step 10: shift +0.3, held-out -35.0" in tips
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none" and line.get_alpha() != 0]
    assert len(hollow) == 2
    assert plot_shift_scatter(correlate_shift_with_forgetting([], num_resamples=10)) is None


def test_the_document_holds_every_figure_of_the_answer() -> None:
    found = correlate_shift_with_forgetting([job("llm", 0.4), job("mlp", 0.2)], num_resamples=10)
    turned = {"job": "llm-seed=0", "task": "tiny_cub200", "right_to_wrong": 7}
    turned["changed_formats"] = dict.fromkeys(("number", "letter", "yes_no", "clock", "other"), 1)
    text = render_shift_report("demo", found, judge_forgetting_statements(found), [turned])
    assert "2 jobs: recipes llm, mlp; seeds 0." in text and "The base's own value is 0.100." in text
    assert "| recipe | cub200 | pixmocount, step 10 | pixmocount |" in text
    assert "| llm | +0.400 | +0.300 | +0.200 |" in text
    assert "| llm | -40.0 | -35.0 | -20.0 |" in text
    assert "| llm-seed=0 | pixmocount | +20.0 | -0.200 | -0.200 | -0.200 | -0.600 |" in text
    assert "| llm-seed=0 | cub200 | 7 | 1 | 1 | 1 | 1 | 1 |" in text
    assert "went back at 2 of 2 stages" in text and "too few to show anything" in text
    assert "No intervals" in text and "late MLP" in text


def test_a_job_s_pictures_share_scales_and_one_legend() -> None:
    results = job("llm", 0.4)
    course, blocks = plot_shift_per_stage(results), plot_layers_per_stage(results)
    assert course is not None and blocks is not None
    assert [len(axes.lines) for axes in course.axes] == [2, 2] and len(course.legends) == 1
    places = list(course.axes[0].lines[0].get_xdata())
    assert places[0] == 0 and places[1] == 1 and places[-1] == 2 and 1 < places[2] < 2
    assert [axes.get_title(loc="left") for axes in blocks.axes] == ["after 1: cub200", "after 2: pixmocount"]
    assert len({axes.get_ylim() for axes in blocks.axes}) == 1 and len(blocks.legends) == 1
    bare = {"base": {}, "stages": []}
    assert plot_shift_per_stage(bare) is None and plot_layers_per_stage(bare) is None
