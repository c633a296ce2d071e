"""lmm-forget compare on folders as jobs leave them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmm_forget.cli.compare import main
from lmm_forget.errors import ConfigError
from lmm_forget.metrics import run_mcnemar_test
from lmm_forget.report.fail_conditions import FailCondition

Make = Callable[..., dict[str, Any]]
Put = Callable[..., Path]


def compared(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict[str, Any]:
    assert main([*map(str, words), "format=json"]) == code
    return dict(json.loads(capsys.readouterr().out))


def values(results: dict[str, Any], stage: int, task: str) -> np.ndarray:
    return np.array([row["value"] for row in results["answers"] if (row["stage"], row["task"]) == (stage, task)])


def test_two_jobs(make: Make, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make("llm", loss=0.15), make("sa_proj", loss=0.05)
    put("a", results=a)
    root = put("b", results=b)
    found = compared(capsys, root / "a", root / "b")
    for task, entry in found["benchmarks"].items():
        before, after = values(a, 5, task), values(b, 5, task)
        assert entry["value"] == pytest.approx(100 * (after.mean() - before.mean()))
        assert entry["mcnemar"] == pytest.approx(run_mcnemar_test(before, after))
        assert (entry["gained"], entry["lost"]) == (np.sum(after > before), np.sum(after < before))
        assert entry["images"] == 20 and entry["n"] == 40
        assert entry["role"] == ("held-out" if task in found["heldout"]["tasks"] else "target")
    assert set(found["heldout"]["tasks"]) == {"tiny_ai2d", "tiny_chartqa", "tiny_docvqa"}
    held = [found["benchmarks"][task] for task in found["heldout"]["tasks"]]
    assert found["heldout"]["value"] == pytest.approx(np.mean([entry["value"] for entry in held]))
    smallest = min(held, key=lambda entry: entry["p_value"])
    assert smallest["p_holm"] == pytest.approx(min(1, 3 * smallest["p_value"]))  # three of them, apart from the skills
    assert found["notes"] == [] and found["first"]["recipe"] == "llm"


def test_jobs_that_count_the_public_score_are_compared_by_it(
    make: Make, put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = {
        "a": make("llm", loss=0.15),
        "b": make("sa_proj", loss=0.05),
        "strict": make("sa_proj", loss=0.05),
    }
    for name, job in jobs.items():
        job["config"]["data"] = {"scoring": "strict" if name == "strict" else "compat"}
        root = put(name, results=job)
    found = compared(capsys, root / "a", root / "b")
    counted = np.arange(40) % 5 != 0  # the others have no public score
    for task, entry in found["benchmarks"].items():
        change = values(jobs["b"], 5, task)[counted].mean() - values(jobs["a"], 5, task)[counted].mean()
        assert entry["value"] == pytest.approx(-100 * change)  # made up as 1 - strict
        assert entry["n"] == 32
    assert found["notes"] == []
    mixed = compared(capsys, root / "a", root / "strict")
    for task, entry in mixed["benchmarks"].items():
        change = values(jobs["strict"], 5, task).mean() - values(jobs["a"], 5, task).mean()
        assert entry["value"] == pytest.approx(100 * change) and entry["n"] == 40
    assert any("compared by strict ones" in note for note in mixed["notes"])


def test_one_job_is_compared_with_its_base_as_its_results_say(
    make: Make, put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make()
    folder = put(results=job) / job["job"]["job"]
    alone = compared(capsys, folder)
    assert alone["heldout"]["value"] == pytest.approx(job["figures"]["heldout_forgetting"]["value"])
    assert alone["targets"]["value"] == pytest.approx(job["figures"]["target_overall"]["value"])
    assert alone == compared(capsys, f"{folder}@base", f"{folder}@last") | {"conditions": []}
    back = compared(capsys, f"{folder}@last", f"{folder}@base")
    assert back["heldout"]["value"] == -alone["heldout"]["value"]
    assert back["heldout"]["lost"] == alone["heldout"]["gained"]
    second = compared(capsys, f"{folder}@2")
    assert second["heldout"]["value"] == pytest.approx(job["figures"]["heldout_forgetting"]["per_stage"][1]["value"])


def test_conditions_give_the_exit_code(make: Make, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put("job", results=make(loss=0.15)) / "job"
    found = compared(capsys, folder, "--fail-if", "heldout < -1.0", "--fail-if", "targets<0", code=1)
    assert [one["holds"] for one in found["conditions"]] == [True, False]
    assert found["conditions"][0]["value"] == found["heldout"]["value"]
    found = compared(capsys, folder, "--fail-if", "worst.lost >= 1000")
    worst = min((e for e in found["benchmarks"].values() if e["role"] == "held-out"), key=lambda e: float(e["value"]))
    assert found["conditions"] == [{"condition": "worst.lost >= 1000", "value": worst["lost"], "holds": False}]
    assert main([str(folder), "--fail-if", "tiny_ai2d.high <= 0"]) == 1
    assert "FAILED, it holds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("heldout", 'is no condition, expected e.g. "heldout < -1.0"'),
        ("heldout < a", "is no condition"),
        ("hedlout < 1", "did you mean heldout?"),
        ("heldout.p_holm < 1", "heldout has no p_holm"),
    ],
)
def test_conditions_that_cannot_be_read(
    condition: str, words: str, make: Make, put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put("job", results=make()) / "job"
    assert main([str(folder), "--fail-if", condition]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_a_gate_that_cannot_be_checked_does_not_pass(make: Make, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put("job", results=make(suite=())) / "job"
    assert main([str(folder), "--fail-if", "heldout < -1"]) == 2
    assert "cannot be checked" in capsys.readouterr().err


def test_conditions_are_read_whole() -> None:
    read = FailCondition.parse(" tiny_v1.5.low>=-2.5e1 ")
    assert (read.name, read.field, read.comparator, read.threshold) == ("tiny_v1.5", "low", ">=", -25.0)
    with pytest.raises(ConfigError):
        FailCondition.parse("a < 1 or b < 2")


def test_different_suites_are_compared_where_they_meet(
    make: Make, put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    put("a", results=make(suite=("tiny_ai2d", "tiny_chartqa")))
    root = put("b", results=make(suite=("tiny_chartqa", "tiny_docvqa")))
    found = compared(capsys, root / "a", root / "b")
    assert found["heldout"]["tasks"] == ["tiny_chartqa"]
    assert found["notes"] == [
        "only demo/a was evaluated on tiny_ai2d: left out",
        "only demo/b was evaluated on tiny_docvqa: left out",
    ]


def test_different_questions_are_left_out(make: Make, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = make(), make(n=30)
    for row in two["answers"]:
        if row["task"] == "tiny_ai2d" and row["sample_id"] == "test-3":
            row["question"] = "Another?"
    put("a", results=one)
    root = put("b", results=two)
    found = compared(capsys, root / "a", root / "b")
    assert found["benchmarks"]["tiny_ai2d"]["n"] == 29 and found["benchmarks"]["tiny_docvqa"]["n"] == 30
    assert "tiny_ai2d: 1 of 30 ids stand for other questions, references or images: left out" in found["notes"]
    assert any("40 and 30 questions were evaluated, 30 by both" in note for note in found["notes"])


def test_nothing_shared_is_a_mistake(make: Make, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    put("a", results=make(tasks=("tiny_cub200",), suite=()))
    root = put("b", results=make(tasks=("tiny_pathvqa",), suite=()))
    assert main([str(root / "a"), str(root / "b")]) == 2
    assert "share no question" in capsys.readouterr().err


def test_two_sweeps_job_by_job(make: Make, tmp_path: Path, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("llm", "sa_proj"):
        root = put(name, results=make(name))
    other = tmp_path / "multirun" / "later"
    root.rename(other)
    for name in ("llm", "vision"):
        root = put(name, results=make(name, loss=0.2))
    found = compared(capsys, other, root)
    assert [(c["first"]["name"], c["second"]["name"]) for c in found["comparisons"]] == [("later/llm", "demo/llm")]
    assert any("has finished sa_proj: left out" in note for note in found["notes"])
    # A gate must not open because a candidate has no result.
    assert main([str(other), str(root), "--fail-if", "heldout < -5"]) == 2
    assert "cannot be checked" in capsys.readouterr().err
    shutil.rmtree(other / "sa_proj")
    shutil.rmtree(root / "vision")
    compared(capsys, other, root, "--fail-if", "heldout < -5", code=1)
    assert main([str(other)]) == 2
    assert "is a sweep, name one of its finished jobs: llm" in capsys.readouterr().err
    assert main([str(other), str(root / "llm")]) == 2
    assert "is a sweep and the other is not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "found 0 folders"),
        (["{root}/nowhere", "{root}/job"], "no such folder"),
        (["{root}/job@7"], "no such stage, there are base and 1 to 5"),
        (["{root}/job@first"], "expected base, last or a number"),
        (["{root}/job@base"], "is compared with its own base, which it is"),
        (["{root}/half"], "has no results.json, expected a finished job"),
        (["{root}/bare"], "no such file, expected the answers of a finished job"),
        (["{root}/aged"], "answers of version 0, this version reads 2"),
        (["{root}/job", "format=pdf"], "format=pdf is not known; choose one of: table, json"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, make: Make, put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.report.conftest import write_answers

    root = put("job", results=make())
    put("half", status={"state": "running"})
    put("bare", results=make() | {"answers": []})
    put("aged", results=make())
    write_answers(make()["answers"][:1], root / "aged", version=b"0")
    assert main([word.format(root=root) for word in words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_table_fits_80_columns_without_colours(
    make: Make, put: Put, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = put("job", results=make(loss=0.2)) / "job"
    assert main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines()) and "\x1b" not in text
    assert "tiny_pixmocount" in text and "…" not in text and "A  demo/job@base" in text
    assert "before any stage" in text and "after stage 5 of 5" in text
