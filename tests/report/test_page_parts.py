"""What stands on the page: the answer, differences, heat maps, samples and their pictures, probes, shared suites."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lmm_forget.metrics import TaskScores, compare_mean_scores
from lmm_forget.report import build_job_rows, load_sweep
from lmm_forget.report.experiment_settings import group_rows_by_setting
from lmm_forget.report.heat_maps import build_heldout_change_matrix, build_score_matrix
from lmm_forget.report.sample_browser import build_sample_browser
from lmm_forget.report.sample_pictures import (
    MAX_SAMPLES_PER_DIRECTION,
    choose_changed_samples,
    read_sample_pictures,
    write_sample_pictures,
)
from lmm_forget.report.setting_differences import compare_settings_to_reference
from lmm_forget.report.shared_suite import restrict_to_shared_suite
from lmm_forget.report.sweep_report import load_sweep_report
from lmm_forget.report.sweep_summary import write_sweep_summary
from lmm_forget.report.verdict import find_pareto_front, format_sweep_answer, format_sweep_question
from lmm_forget.tasks.task import Sample

Make = Callable[..., dict[str, Any]]
Put = Callable[..., Path]


def told(*results: dict[str, Any]) -> tuple[str, str]:
    settings = group_rows_by_setting(build_job_rows(results))
    return format_sweep_question(settings), format_sweep_answer(settings)


def estimate(result: dict[str, Any], learning: tuple[float, ...], final: tuple[float, ...]) -> dict[str, Any]:
    keys = ("value", "low", "high")
    result["figures"]["target_learning"] = dict(zip(keys, learning, strict=True))
    result["figures"]["heldout_forgetting"] |= dict(zip(keys, final, strict=True))
    return result


def test_the_answer_names_the_recipe_that_learns_and_keeps(make: Make) -> None:
    good = estimate(make("sa_proj"), (25.0, 20.0, 30.0), (-0.6, -1.5, 0.3))
    bad = estimate(make("llm"), (32.0, 28.0, 36.0), (-23.0, -25.0, -21.0))
    asked, said = told(bad, good)
    assert asked == "Which recipe learns 5 skills one after another without forgetting what the model knew?"
    assert said.startswith("sa_proj: it learned +25.0 points and kept its held-out mean (-0.6, within chance).")
    assert "llm learned +32.0 points, but lost 23.0 of 94.2 points" in said


def test_the_answer_when_everything_forgets(make: Make) -> None:
    little = estimate(make("mlp"), (20.0, 15.0, 25.0), (-5.0, -7.0, -3.0))
    much = estimate(make("llm"), (32.0, 28.0, 36.0), (-23.0, -25.0, -21.0))
    _, said = told(much, little)
    assert said.startswith("None. mlp forgot least: it learned +20.0 points and lost 5.0 of")
    assert "llm learned most, +32.0 points" in said
    nothing = estimate(make("mlp"), (0.5, -1.0, 2.0), (-5.0, -7.0, -3.0))
    assert told(nothing)[1].startswith("It learned no more than chance allows")
    assert told() == (format_sweep_question([]), "No job has finished yet.")
    assert "nothing was held out" in told(make(suite=()))[1]
    assert told(make("llm", 1e-4), make("llm", 2e-4))[0].startswith("At which learning rate does llm learn")


def test_two_seeds_that_agree_are_an_answer(make: Make) -> None:
    pair = [
        estimate(make("llm", seed=seed), (20.0 + 5 * seed, 15.0, 30.0), (-60.0 - 9 * seed, -75.0, -55.0))
        for seed in (0, 1)
    ]
    (setting,) = group_rows_by_setting(build_job_rows(pair))
    assert setting.figures["learning"]["low"] < 0  # Student's interval of two jobs says nothing
    assert told(*pair)[1].startswith("It learned +22.5 points and lost 64.5 of")
    pair[1] = estimate(pair[1], (1.0, -2.0, 4.0), (-60.0, -75.0, -55.0))
    assert told(*pair)[1].startswith("It learned no more than chance allows")


def test_front_keeps_what_nobody_beats(make: Make) -> None:
    points = {"a": (10.0, -1.0), "b": (20.0, -5.0), "c": (15.0, -9.0), "d": (5.0, -2.0)}
    results = [estimate(make(name), (x, x, x), (y, y, y)) for name, (x, y) in points.items()]
    assert [setting.name for setting in find_pareto_front(group_rows_by_setting(build_job_rows(results)))] == ["a", "b"]


def test_differences_of_single_jobs_are_paired_by_question(make: Make, put: Put) -> None:
    one, two = make("llm", loss=0.02), make("mlp", loss=0.12, gain=0.5)  # the same base
    put(results=one)
    sweep = load_sweep(put(results=two))
    (found,) = compare_settings_to_reference(sweep, group_rows_by_setting(build_job_rows(sweep.results.values())))
    assert found.name == "mlp" and found.basis == "questions"

    def table(result: dict[str, Any], stage: int, task: str) -> list[float]:
        return [row["value"] for row in result["answers"] if (row["stage"], row["task"]) == (stage, task)]

    images = [f"image-{i // 2}" for i in range(40)]
    by_hand = compare_mean_scores(
        [
            TaskScores(task, np.array([table(one, 5, task), table(two, 5, task)]), images)
            for task in ("tiny_ai2d", "tiny_chartqa", "tiny_docvqa")
        ]
    )
    assert found.final is not None and found.learning is not None
    assert found.final["value"] == pytest.approx(by_hand["value"])
    assert found.final["p_value"] == pytest.approx(by_hand["p_value"]) == found.final["p_holm"]
    gap = two["figures"]["target_learning"]["value"] - one["figures"]["target_learning"]["value"]
    assert found.learning["value"] == pytest.approx(gap)


def test_differences_of_several_jobs_are_paired_by_seed(make: Make, put: Put) -> None:
    for seed in range(3):
        put(results=make("llm", seed=seed, gain=0.3))
        root = put(results=make("sa_proj", seed=seed, gain=0.5 + 0.05 * seed))
    sweep = load_sweep(root)
    rows = {(row.recipe, row.seed): row for row in build_job_rows(sweep.results.values())}
    (found,) = compare_settings_to_reference(sweep, group_rows_by_setting(list(rows.values())))
    sign = 1 if found.name == "sa_proj" else -1
    gaps = [
        sign * (rows["sa_proj", s].figures["learning"]["value"] - rows["llm", s].figures["learning"]["value"])
        for s in range(3)
    ]
    assert found.basis == "3 pairs of jobs" and found.learning is not None
    assert found.learning["value"] == pytest.approx(np.mean(gaps))
    assert found.learning["low"] == pytest.approx(np.mean(gaps) - 4.302653 * np.std(gaps, ddof=1) / 3**0.5)


def test_heat_maps_hold_the_scores_of_the_records(make: Make, put: Put) -> None:
    result = make()
    sweep = load_sweep(put(results=result))
    (setting,) = group_rows_by_setting(build_job_rows(sweep.results.values()))
    matrix = build_score_matrix(setting, sweep.results)
    assert matrix.columns == ["base", "cub200", "pixmocount", "pathvqa", "textvqa", "timeclock"]
    cells = dict(matrix.rows)["pathvqa"]
    assert cells[3].value == result["stages"][2]["scores"]["tiny_pathvqa"]["value"]
    assert [cell.is_trained_task for cell in cells] == [False, False, False, True, False, False]
    changes = build_heldout_change_matrix(setting, sweep.results)
    assert changes is not None
    fell = result["stages"][1]["scores"]["tiny_ai2d"]["value"] - result["base"]["scores"]["tiny_ai2d"]["value"]
    assert dict(changes.rows)["ai2d"][1].value == pytest.approx(fell)
    mean = dict(changes.rows)["mean"]
    assert [cell.value for cell in mean] == [
        pytest.approx(stage["value"]) for stage in result["figures"]["heldout_forgetting"]["per_stage"]
    ]


def test_orders_are_not_averaged_by_task(make: Make, put: Put) -> None:
    put(results=make(tasks=("tiny_cub200", "tiny_pathvqa"), job="one"))
    sweep = load_sweep(put(results=make(tasks=("tiny_pathvqa", "tiny_cub200"), job="two")))
    (setting,) = group_rows_by_setting(build_job_rows(sweep.results.values()))
    assert setting.tasks is None and len(setting.rows) == 2
    assert "of one; the other jobs train in other orders" in build_score_matrix(setting, sweep.results).note
    changes = build_heldout_change_matrix(setting, sweep.results)
    assert changes is not None and changes.columns == ["stage 1", "stage 2"]


class Shots:
    """Samples whose image has the number's colour; one cannot be read."""

    def __getitem__(self, place: int) -> Sample:
        if place == 3:
            raise OSError("gone")
        picture = Image.new("RGB", (640, 320), (place * 5, 0, 0))
        return Sample(f"s{place}", f"i{place}", (picture, picture), "?", ("x",))


def test_pictures_are_few_small_and_the_same_for_all_jobs(tmp_path: Path) -> None:
    falls = {f"s{i}": [1.0, 0.0] for i in range(30)}
    still = {f"s{i}": [1.0, 1.0] for i in range(30)}
    assert choose_changed_samples(still) == [] and len(choose_changed_samples(falls)) == MAX_SAMPLES_PER_DIRECTION
    half = {sample: course if int(sample[1:]) % 2 else [1.0, 1.0] for sample, course in falls.items()}
    odd = [sample for sample in choose_changed_samples(falls) if int(sample[1:]) % 2]
    assert [sample for sample in choose_changed_samples(half) if sample in choose_changed_samples(falls)] == odd
    path = write_sample_pictures(tmp_path, {"a": falls, "b": falls, "c": still}, dict.fromkeys("abc", Shots()))  # type: ignore[arg-type]
    kept = read_sample_pictures(tmp_path)
    gone = 2 * ("s3" in choose_changed_samples(falls))
    assert len(kept) == 2 * MAX_SAMPLES_PER_DIRECTION - gone and path.stat().st_size < 50_000
    picture = next(iter(kept.values()))
    assert (picture.width, picture.height, picture.num_images) == (288, 144, 2)
    assert Image.open(io.BytesIO(picture.webp)).size == (288, 144)
    write_sample_pictures(
        tmp_path, {"a": falls, "b": falls}, dict.fromkeys("ab", Shots()), max_bytes=3 * len(picture.webp)
    )  # type: ignore[arg-type]
    assert {task for task, _ in read_sample_pictures(tmp_path)} == {"a", "b"} and len(
        read_sample_pictures(tmp_path)
    ) <= 4


def test_samples_carry_what_every_job_answered(make: Make, put: Put) -> None:
    put("one", results=make("llm", loss=0.15))
    sweep = load_sweep(put("two", results=make("sa_proj", loss=0.02)))
    found = build_sample_browser(sweep, group_rows_by_setting(build_job_rows(sweep.results.values())))
    assert found.notes == ["These jobs left no pictures of their samples."]
    assert [job["name"] for job in found.data["jobs"]] == ["one", "two"]
    for sample in found.data["samples"]:
        assert set(sample["runs"]) == {"0", "1"} and all(len(run) == 6 for run in sample["runs"].values())
    rows = {
        (row["stage"], row["sample_id"]): row["value"]
        for row in make("llm", loss=0.15)["answers"]
        if row["task"] == "tiny_ai2d"
    }
    worse = sum(rows[5, f"test-{i}"] < rows[0, f"test-{i}"] for i in range(40))
    better = sum(rows[5, f"test-{i}"] > rows[0, f"test-{i}"] for i in range(40))
    assert found.data["jobs"][0]["counts"][4]["tiny_ai2d"] == [worse, better]
    assert found.data["samples"][0]["task"] != found.data["samples"][1]["task"]  # tasks take turns


def test_a_job_without_answers_is_said(make: Make, put: Put) -> None:
    root = put(results=make() | {"answers": []})
    write_sweep_summary(load_sweep_report(root))
    assert "no answers to show" in (root / "summary.html").read_text()


def test_different_suites_are_narrowed_to_what_all_share(make: Make, put: Put) -> None:
    one, two = (
        make("llm", suite=("tiny_ai2d", "tiny_chartqa")),
        make("sa_proj", suite=("tiny_chartqa", "tiny_docvqa")),
    )
    put(results=one)
    root = put(results=two)
    summary = write_sweep_summary(load_sweep_report(root))
    (note,) = [note for note in summary["notes"] if "different benchmarks" in note]
    assert "over the 1 that all share, without tiny_ai2d, tiny_docvqa" in note
    for result in (one, two):
        (job,) = [job for job in summary["jobs"] if job["job"] == result["job"]["job"]]
        before, after = (each["scores"]["tiny_chartqa"]["value"] for each in (result["base"], result["stages"][-1]))
        assert job["figures"]["final"]["value"] == pytest.approx(after - before)
        assert job["heldout_base"] == pytest.approx(before)
        assert job["figures"]["learning"] == result["figures"]["target_learning"]
    assert "different benchmarks" in (root / "summary.html").read_text()


def test_suites_that_share_nothing_have_no_held_out_figures(make: Make, put: Put) -> None:
    put(results=make("llm", suite=("tiny_ai2d",)))
    sweep = restrict_to_shared_suite(load_sweep(put(results=make("sa_proj", suite=("tiny_docvqa",)))))
    assert all(r["figures"]["heldout_forgetting"]["value"] is None for r in sweep.results.values())
    assert "share none" in sweep.notes[0]


def test_csv_and_latex(make: Make, put: Put) -> None:
    result = make()
    put(results=result)
    root = put("lost", status={"state": "failed"})
    write_sweep_summary(load_sweep_report(root))
    lines = list(csv.DictReader((root / "summary.csv").open()))
    assert [line["state"] for line in lines] == ["done", "failed"]
    assert float(lines[0]["learning_low"]) == result["figures"]["target_learning"]["low"]
    assert lines[1]["learning"] == ""
    table = (root / "summary.tex").read_text()
    assert table.count("{") == table.count("}") and "sa\\_proj" in table
    body = [line for line in table.splitlines() if line.endswith(r"\\")]
    columns = re.search(r"tabular}{(\w+)}", table)
    assert columns and {line.count("&") + 1 for line in body} == {len(columns[1])}


def shift(mean: float, kl: float) -> dict[str, Any]:
    mass = {"number": {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "max": mean}}
    return {
        "probe": "output_shift",
        "prompts": "tiny_captions",
        "mode": "forced",
        "n": 9,
        "mass": mass,
        "kl": kl,
    }


def layers(size: float) -> dict[str, Any]:
    parts = {"attention": [size, 2 * size, size], "mlp": [0.1, size, 0.3]}
    return {
        "probe": "residual_to_logit",
        "prompts": "tiny_captions",
        "mode": "forced",
        "folded": parts,
        "norm": parts,
    }


def test_probes_are_drawn_where_they_were_recorded(make: Make, put: Put) -> None:
    probed, bare = make("llm"), make("sa_proj")
    probed["base"]["probes"] = {"readings": [shift(0.02, 0.0), layers(0.0)], "milestones": []}
    for stage in probed["stages"]:
        here = stage["index"]
        stage["probes"] = {
            "readings": [shift(0.02 + 0.03 * here, 0.1 * here), layers(1.0 * here)],
            "milestones": [{"step": 10, "readings": [shift(0.01 + 0.03 * here, 0.1 * here)]}],
            "missing_steps": [],
            "alarm": None,
        }
    put(results=bare)
    root = put(results=probed)
    write_sweep_summary(load_sweep_report(root))
    page = (root / "summary.html").read_text()
    assert "Probes: what moved inside" in page
    tips = re.findall(r'data-tip="([^"]*)"', page)
    assert "llm - stage 3: 0.11" in tips and "llm - stage 3, step 10: 0.1" in tips
    assert "llm - layer 2, attention: 10" in tips
    final = probed["figures"]["heldout_forgetting"]["value"]
    assert f"llm after stage 5 (tiny_timeclock): shift +0.15, held-out {final:+.1f}" in tips
    assert {path.stem for path in root.glob("probe_*.png")} == {
        "probe_shift",
        "probe_layers",
        "probe_vs_forgetting",
    }


def test_without_probes_there_is_no_such_section(make: Make, put: Put) -> None:
    root = put(results=make())
    write_sweep_summary(load_sweep_report(root))
    assert "Probes" not in (root / "summary.html").read_text() and not list(root.glob("probe_*"))


def test_the_page_says_how_it_was_made(make: Make, put: Put) -> None:
    one, two = make("llm"), make("sa_proj", 2e-4)
    asked = {"split": "test", "samples": 200, "fingerprint": "f00d"}
    one["data"] = {"tiny_ai2d": {"evaluated": asked}}
    two["versions"]["numpy"] = "0.1"
    put(results=one)
    root = put(results=two)
    write_sweep_summary(load_sweep_report(root))
    page = (root / "summary.html").read_text()
    assert "200 of test, f00d" in page and "different versions of numpy" in page
    assert "training.learning_rate" in page and "0.0002" in page
    assert json.loads((root / "summary.json").read_text())["question"] in page
