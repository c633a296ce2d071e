"""Pictures and summaries of job folders as jobs leave them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lmm_forget.errors import DataError
from lmm_forget.report import build_job_rows, load_sweep
from lmm_forget.report.experiment_settings import group_rows_by_setting
from lmm_forget.report.plots import (
    plot_heldout_per_stage,
    plot_learning_vs_forgetting,
    save_figure,
    save_job_plots,
)
from lmm_forget.report.setting_differences import compare_settings_to_reference
from lmm_forget.report.shared_suite import restrict_to_shared_suite
from lmm_forget.report.sweep_report import load_sweep_report
from lmm_forget.report.sweep_summary import write_sweep_summary
from lmm_forget.store.record_schemas import RESULTS_SCHEMA

Make = Callable[..., dict[str, Any]]
Put = Callable[..., Path]


def test_summary_of_a_sweep_names_everything(make: Make, put: Put) -> None:
    results = [make("llm", 5e-5), make("llm", 1e-4), make("sa_proj", 1e-4)]
    for result in results:
        root = put(results=result)
    put("vision", status={"state": "failed", "error": "out of memory\nat stage 2/5"})
    put("projector", status={"state": "interrupted"})
    put("waiting")
    returned = write_sweep_summary(load_sweep_report(root))
    assert returned == json.loads((root / "summary.json").read_text())
    assert returned["schema"] == RESULTS_SCHEMA and returned["name"] == "demo"
    assert {job["job"] for job in returned["jobs"]} == {result["job"]["job"] for result in results}
    by_name = {job["job"]: job for job in returned["jobs"]}
    for result in results:
        assert by_name[result["job"]["job"]]["figures"]["learning"] == result["figures"]["target_learning"]
    assert [(job["job"], job["state"], job["error"]) for job in returned["unfinished"]] == [
        ("projector", "interrupted", None),
        ("vision", "failed", "out of memory\nat stage 2/5"),
        ("waiting", "planned", None),
    ]
    for name in ("summary.md", "summary.html"):
        text = (root / name).read_text()
        for word in (
            "llm",
            "sa_proj",
            "5e-5",
            "vision",
            "out of memory",
            "interrupted",
            "waiting",
            "not seeds",
        ):
            assert word in text, (name, word)
    drawn = {"heldout_per_stage", "learning_vs_forgetting", "stage_by_benchmark", "stage_by_task"}
    for kind in ("svg", "png"):
        assert {path.stem for path in root.glob(f"*.{kind}")} == drawn
    assert set(re.findall(r"\]\((\w+)\.png\)", (root / "summary.md").read_text())) == drawn


def test_page_stands_alone_and_is_well_formed(make: Make, put: Put) -> None:
    result = make(job="a&b")
    for row in result["answers"]:
        row["question"] = "</script><script>alert(2)</script>?"
    root = put(results=result)
    put("<b>odd", status={"state": "failed", "error": "<script>alert(1)</script> & more"})
    write_sweep_summary(load_sweep_report(root))
    page = (root / "summary.html").read_text()
    assert page.count("<script") == 2 and page.count("</script>") == 2  # the samples as JSON, and the page's own
    assert "&lt;b&gt;odd" in page and "&lt;script&gt;alert(1)" in page and "\\u003c/script>" in page
    outside = re.sub(r"<svg.*?</svg>|<script.*?</script>", "", page, flags=re.S)
    assert set(re.findall(r"""(?:src|href)=["'](.)""", outside)) == {
        "#",
        "d",
    }  # in the page, and an empty icon
    assert "@import" not in page and "url(http" not in page and "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page and "@media print" in page and 'name="viewport"' in page
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert len(pictures) == 3  # frontier, held-out means, the job's targets
    ids: list[str] = []
    for picture in pictures:
        ElementTree.fromstring(picture)
        assert "currentColor" in picture and "aria-label" in picture and "data-tip" in picture
        ids += re.findall(r'\bid="([^"]*)"', picture)
    assert len(ids) == len(set(ids))


def test_running_twice_gives_the_same_files(make: Make, put: Put) -> None:
    root = put(results=make())
    write_sweep_summary(load_sweep_report(root))
    first = {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}
    write_sweep_summary(load_sweep_report(root))
    assert first == {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}
    assert set(first) >= {"summary.json", "summary.md", "summary.html", "heldout_per_stage.png"}


def test_only_unfinished_jobs_still_give_a_summary(put: Put) -> None:
    root = put("llm", status={"state": "failed", "error": "no space left"})
    summary = write_sweep_summary(load_sweep_report(root))
    assert summary["jobs"] == [] and summary["notes"] == []
    assert "no space left" in (root / "summary.md").read_text()
    assert "No job has finished yet." in (root / "summary.html").read_text()


def test_one_job_folder_can_be_summarized(make: Make, put: Put) -> None:
    root = put(results=make(job="alone"))
    assert [job["job"] for job in write_sweep_summary(load_sweep_report(root / "alone"))["jobs"]] == ["alone"]
    entry = json.loads((root / "alone" / "summary.json").read_text())["jobs"][0]
    assert entry["recipe"] == "sa_proj" and len(entry["heldout_per_stage"]) == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        (
            '{"schema": 3, "versions": {"lmm_forget": "9.1"}}',
            "written by lmm-forget 9.1), this version reads schema 2; a",
        ),
        ('{"schema": 1}', "schema 1, this version reads schema 2; delete it and run the job again"),
        ("[]", "schema None"),
        ('{"schema": 2, "job": {}, "config": {}, "plan": {}, "base": {}}', "has no stages, figures"),
    ],
)
def test_unusable_results_are_named_and_the_rest_goes_on(make: Make, put: Put, text: str, words: str) -> None:
    put("broken")
    root = put(results=make())
    (root / "broken" / "results.json").write_text(text)
    summary = write_sweep_summary(load_sweep_report(root))
    assert len(summary["jobs"]) == 1
    (job,) = summary["unfinished"]
    assert (job["job"], job["state"]) == ("broken", "unreadable") and words in job["error"]
    with pytest.raises(DataError, match=re.escape(words)):
        write_sweep_summary(load_sweep_report(root / "broken"))


def test_one_configuration_in_two_folders_counts_once(make: Make, put: Put) -> None:
    for seed in (0, 1):
        put(f"sweep-{seed}", results=make(seed=seed))
    root = put("again", results=make(seed=1))  # a single run of what a sweep did too
    summary = write_sweep_summary(load_sweep_report(root))
    assert [job["job"] for job in summary["jobs"]] == ["again", "sweep-0"]
    assert [entry["jobs"] for entry in summary["spread"]] == [2]
    told = "sweep-1 is again once more (the same configuration and data): it counts once, as again."
    for name in ("summary.html", "summary.md"):
        assert told in (root / name).read_text()
    other = make(seed=1)
    other["figures"]["target_learning"]["value"] += 1.0
    put("twin", results=other)
    assert any("although their figures differ" in note for note in load_sweep(root).notes)
    looked = make(seed=0)  # the same once more, looked into: that one counts
    looked["config"]["probe"] = {"name": "both"}
    put("z-probed", results=looked | {"probes": {}})
    assert "sweep-0" not in load_sweep(root).results and "z-probed" in load_sweep(root).results
    alarm = {"stop_when": {"kl": 1.0}, "on_alarm": "stop", "tasks": {}, "token_sets": [], "forced_on": "base"}
    looked["config"]["probe"] = alarm | {"n": 8, "alarm_n": 8, "alarm_every": 10}
    put("stopped", results=looked | {"probes": {}})  # an alarm that ends stages makes another setting
    found = build_job_rows(load_sweep(root).results.values())
    assert len({row.setting for row in found}) == 2


def test_jobs_that_were_asked_different_questions_are_said(make: Make, put: Put) -> None:
    for recipe, fingerprint in (("llm", "f00d"), ("sa_proj", "beef")):
        asked = {"evaluated": {"split": "test", "samples": 40, "fingerprint": fingerprint}}
        results = make(recipe) | {
            "data": {"tiny_ai2d": asked, "tiny_docvqa": asked | {"evaluated": {"fingerprint": "x"}}}
        }
        for row in results["answers"]:
            row["sample_id"] = f"{recipe}-{row['sample_id']}"
        root = put(results=results)
    sweep = restrict_to_shared_suite(load_sweep(root))
    assert sweep.notes == [
        "The jobs were not evaluated on the same questions of tiny_ai2d: part of a difference may be the questions."
    ]
    (found,) = compare_settings_to_reference(sweep, group_rows_by_setting(build_job_rows(sweep.results.values())))
    assert (found.learning, found.final, found.basis) == (
        None,
        None,
        "not the same questions, references or base",
    )


def test_states_that_do_not_fit(put: Put) -> None:
    root = put("ended", status={"state": "done"})
    put("torn")
    (root / "torn" / "status.json").write_text('{"state": "ru')
    assert [(job.job, job.state) for job in load_sweep(root).unfinished] == [
        ("ended", "incomplete"),
        ("torn", "unreadable"),
    ]


def test_a_folder_without_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no job"):
        write_sweep_summary(load_sweep_report(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        write_sweep_summary(load_sweep_report(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: r.update(stages=[]), "stages is list []"),
        (lambda r: r["stages"][1].update(scores={}), "stage 2 has no score of"),
        (lambda r: r.update(config={}), "config has no recipe"),
        (lambda r: r.update(plan=None), "plan is null"),
        (lambda r: r.update(base=3), "base is int 3"),
        (
            lambda r: next(iter(r["base"]["scores"].values())).update(value="x"),
            "expected a number under value",
        ),
        (lambda r: r["figures"]["heldout_forgetting"].update(per_stage=[]), "per_stage is empty"),
        (lambda r: r["figures"].pop("target_learning"), "figures has no whole target_learning"),
    ],
)
def test_one_record_that_lacks_something_does_not_take_the_page_down(
    spoil: Any, words: str, make: Make, put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmm_forget.cli.report import main

    broken = make("llm")
    root = put("broken", results=broken)
    put("good", results=make("sa_proj"))
    results = json.loads((root / "broken" / "results.json").read_text())
    spoil(results)
    (root / "broken" / "results.json").write_text(json.dumps(results))
    summary = write_sweep_summary(load_sweep_report(root))
    (job,) = summary["unfinished"]
    assert (job["job"], job["state"]) == ("broken", "unreadable") and words in job["error"]
    assert [entry["job"] for entry in summary["jobs"]] == ["good"]
    assert main([str(root / "broken")]) == 2  # alone, there is nothing to show
    assert words in capsys.readouterr().err and not (root / "broken" / "summary.html").exists()


def lines_of(figure: Any) -> list[Any]:
    return [container.lines[0] for container in figure.axes[0].containers]


def test_frontier_joins_one_recipe_in_the_order_of_its_learning_rates(make: Make) -> None:
    results = [make("llm", 2e-4, gain=0.8), make("sa_proj", 1e-4), make("llm", 5e-5, gain=0.3)]
    figure = plot_learning_vs_forgetting(group_rows_by_setting(build_job_rows(results)))
    points = [list(zip(*line.get_data(), strict=True)) for line in lines_of(figure)]
    value = [(r["figures"]["target_learning"]["value"], r["figures"]["heldout_forgetting"]["value"]) for r in results]
    assert sorted(map(len, points)) == [1, 2]
    assert [value[2], value[0]] in points
    assert [text.get_text() for text in figure.axes[0].texts] == ["5e-5", "2e-4"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} >= {"llm", "sa_proj"}


def test_seeds_are_points_around_their_mean(make: Make) -> None:
    results = [make(seed=seed, gain=0.5 + 0.1 * seed) for seed in range(3)]
    figure = plot_learning_vs_forgetting(group_rows_by_setting(build_job_rows(results)))
    (line,) = lines_of(figure)
    learned = [result["figures"]["target_learning"]["value"] for result in results]
    assert list(line.get_xdata()) == [pytest.approx(sum(learned) / 3)]
    (cloud,) = [c for c in figure.axes[0].collections if len(c.get_offsets()) == 3]
    assert sorted(x for x, _ in cloud.get_offsets()) == pytest.approx(sorted(learned))


def test_heldout_picture_shows_the_means_of_the_scores(make: Make) -> None:
    result = make()
    suite = ("tiny_ai2d", "tiny_chartqa", "tiny_docvqa")
    scores = [result["base"]["scores"], *(stage["scores"] for stage in result["stages"])]
    figure = plot_heldout_per_stage(group_rows_by_setting(build_job_rows([result])))
    drawn = lines_of(figure)[0].get_ydata()
    assert list(drawn) == pytest.approx([sum(score[task]["value"] for task in suite) / 3 for score in scores])
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["base", *(stage["task"].removeprefix("tiny_") for stage in result["stages"])]


def test_different_orders_are_labelled_by_stage_number(make: Make) -> None:
    rows = build_job_rows([make(job="one"), make(tasks=("tiny_pathvqa", "tiny_cub200"), job="two")])
    figure = plot_heldout_per_stage(group_rows_by_setting(rows))
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == [
        "base",
        *(f"stage {s}" for s in range(1, 6)),
    ]


def test_many_orders_and_jobs_without_a_suite_can_be_drawn(make: Make, tmp_path: Path) -> None:
    results = [make(seed=seed, job=f"seed{seed}") for seed in range(14)] + [make("llm", suite=(), job="none")]
    settings = group_rows_by_setting(build_job_rows(results))
    drawn = save_figure(plot_learning_vs_forgetting(settings), tmp_path / "learning_vs_forgetting")
    assert all(path.stat().st_size > 1000 for path in drawn)
    (legend,) = plot_heldout_per_stage(settings).legends
    assert [text.get_text() for text in legend.get_texts()] == ["sa_proj"]
    assert len(save_job_plots(results[-1], tmp_path)) == 4


def test_a_job_is_named_by_its_folder(make: Make, put: Put) -> None:
    for seed, name in enumerate(("one", "two")):
        result = make(seed=seed)
        del result["job"]["job"]
        root = put(name, results=result)
    assert [job["job"] for job in write_sweep_summary(load_sweep_report(root))["jobs"]] == ["one", "two"]
