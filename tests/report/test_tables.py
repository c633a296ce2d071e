"""The printed table: numbers, notes, width."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lmm_forget.report import UnfinishedJob, build_job_rows, list_report_notes, print_sweep_table
from lmm_forget.report.experiment_settings import group_rows_by_setting, summarize_seed_spread
from lmm_forget.report.job_rows import (
    format_learning_rate,
    format_parameter_count,
    format_points,
    list_heldout_tasks,
)

Make = Callable[..., dict[str, Any]]


def printed(results: list[dict[str, Any]], width: int = 80, unfinished: tuple[UnfinishedJob, ...] = ()) -> str:
    console = Console(file=io.StringIO(), width=width)
    rows = build_job_rows(results)
    print_sweep_table(
        rows, group_rows_by_setting(rows), console, notes=list_report_notes(results), unfinished=unfinished
    )
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines())
    return str(text)


@pytest.mark.parametrize("width", [80, 130])
def test_every_figure_stands_in_the_table_with_its_interval(make: Make, width: int) -> None:
    results = [make("sa_proj_mlp_gateup"), make("llm", loss=0.2)]
    text = printed(results, width)
    for result in results:
        heldout = result["figures"]["heldout_forgetting"]
        shown = [result["figures"]["target_learning"], result["figures"]["target_forgetting"]]
        for figure in [*shown, heldout, heldout["worst"], heldout["recovery"]]:
            low, high = format_points(figure["low"]), format_points(figure["high"])
            assert format_points(figure["value"]) in text
            assert (f"{low}/{high}" if width == 80 else f"[{low}, {high}]") in text
    assert "sa_proj_mlp_gateup" in text and "0.88 M" in text and "1e-4" in text
    assert "\x1b" not in text  # a log has no colours


def test_largest_possible_numbers_are_not_cut_at_80_columns(make: Make) -> None:
    result = make("sa_proj_mlp_gateup")
    result["figures"]["target_learning"] = {"value": 100.0, "low": 99.9, "high": 100.0}
    for figure in (result["figures"]["heldout_forgetting"], result["figures"]["heldout_forgetting"]["worst"]):
        figure.update(value=-100.0, low=-100.0, high=-100.0)
    text = printed([result])
    assert "+99.9/+100.0" in text and text.count("-100.0/-100.0") == 2


def test_notes_say_what_the_intervals_cover(make: Make) -> None:
    text = " ".join(printed([make()]).split())
    assert "The intervals of a job cover questions, not seeds and not kinds of processor" in text
    assert "not the paper's benchmarks" in text
    real = make(tasks=("cub200", "pixmocount"), suite=("ai2d",))
    assert "not the paper's" not in printed([real])


def test_a_figure_that_does_not_exist_is_no_zero(make: Make) -> None:
    text = printed([make(tasks=("tiny_cub200",))], 130)
    assert "n/a" in text
    assert "nan" not in text.lower()


def test_unfinished_jobs_are_named_even_without_finished_ones() -> None:
    text = printed([], unfinished=(UnfinishedJob("llm", "failed", "out of memory"), UnfinishedJob("vision", "planned")))
    assert "failed: llm - out of memory" in text and "planned: vision" in text
    assert "not seeds" not in text


def test_rows_are_ordered_by_recipe_then_learning_rate(make: Make) -> None:
    results = [make("llm", 2e-4), make("sa_proj", 1e-4), make("llm", 5e-5)]
    assert [(row.recipe, row.learning_rate) for row in build_job_rows(results)] == [
        ("llm", 5e-5),
        ("llm", 2e-4),
        ("sa_proj", 1e-4),
    ]


def test_jobs_that_differ_in_seed_or_order_carry_their_name_and_a_spread(make: Make) -> None:
    results = [make(seed=seed, gain=0.5 + 0.1 * seed) for seed in range(3)]
    text = printed(results, 130)
    assert all(result["job"]["job"] in text for result in results)
    (entry,) = summarize_seed_spread(group_rows_by_setting(build_job_rows(results)))
    values = [result["figures"]["target_learning"]["value"] for result in results]
    assert entry["jobs"] == 3
    middle, sd = sum(values) / 3, np.std(values, ddof=1)
    arm = 4.302653 * sd / 3**0.5  # Student's t with two degrees of freedom
    assert entry["learning"] == pytest.approx(
        {
            "mean": middle,
            "low": middle - arm,
            "high": middle + arm,
            "sd": sd,
            "min": min(values),
            "max": max(values),
        }
    )
    assert "over seeds and orders: mean" in text
    single = [make("llm", tasks=(task,)) for task in ("tiny_cub200", "tiny_pathvqa")]
    # other tasks are another experiment, not another order
    assert summarize_seed_spread(group_rows_by_setting(build_job_rows(single))) == []


def test_learning_rates_shown_are_those_that_trained_something(make: Make) -> None:
    shown = {
        component: build_job_rows([make(component, component=component)])[0].learning_rates
        for component in ("language", "vision")
    }
    assert shown == {"language": "1e-4", "vision": "vision 2e-6"}
    full = make("full")
    full["plan"]["rules"].append({"component": "vision"})
    assert build_job_rows([full])[0].learning_rates == "1e-4, vision 2e-6"


def test_other_settings_are_not_other_seeds(make: Make) -> None:
    results = [make(seed=0), make(seed=1), make(seed=2)]
    results[2]["config"]["training"]["max_steps"] = 50
    rows = build_job_rows(results)
    assert sorted(len(setting.rows) for setting in group_rows_by_setting(rows)) == [1, 2]
    assert {row.label for row in rows} == {"sa_proj", "sa_proj, max_steps 50"}
    assert "sa_proj, max_steps 50" in printed(results, 130)


def test_a_missing_seed_is_named_with_its_setting(make: Make) -> None:
    results = [make(seed=seed) for seed in (0, 1)]
    lost = UnfinishedJob("third", "failed", config={**make(seed=2)["config"], "store": "elsewhere", "name": "demo"})
    lost.config["sequence"]["tasks"] = [stage["task"] for stage in results[0]["stages"]]  # type: ignore[index]
    (setting,) = group_rows_by_setting(build_job_rows(results), [lost])
    assert setting.missing == (lost,) and len(setting.rows) == 2


def test_many_jobs_of_few_settings_are_one_line_each(make: Make) -> None:
    results = [make(seed=seed, job=f"seed{seed}", n=8) for seed in range(30)]
    text = printed(results)
    assert "30 jobs, 1e-4" in text and "seed17" not in text and len(text.splitlines()) < 30


def test_layer_range_is_part_of_the_name(make: Make) -> None:
    assert "sa_proj 14:28" in printed([make(layers="14:28")])


def test_held_out_tasks_come_from_the_suite(make: Make) -> None:
    result = make()
    assert list_heldout_tasks(result) == ["tiny_ai2d", "tiny_chartqa", "tiny_docvqa"]
    result["config"]["suite"]["tasks"] = ["chartqa"]
    assert list_heldout_tasks(result) == ["tiny_chartqa"]
    del result["config"]["suite"]
    assert list_heldout_tasks(result) == ["tiny_ai2d", "tiny_chartqa", "tiny_docvqa"]


@pytest.mark.parametrize(
    ("number", "text"), [(24.94, "+24.9"), (-0.6, "-0.6"), (0.0, "+0.0"), (-0.01, "+0.0"), (None, "n/a")]
)
def test_points(number: float | None, text: str) -> None:
    assert format_points(number) == text


def test_counts_and_rates() -> None:
    assert [format_parameter_count(n) for n in (None, 12, 12_345, 884_736, 3_802_100_000)] == [
        "n/a",
        "12",
        "12.3 k",
        "0.88 M",
        "3,802.1 M",
    ]
    assert [format_learning_rate(x) for x in (5e-6, 1e-4, 1.5e-4, 4e-4, 0.1, 1.0, 0.0)] == [
        "5e-6",
        "1e-4",
        "1.5e-4",
        "4e-4",
        "1e-1",
        "1e0",
        "0",
    ]
