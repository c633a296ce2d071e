"""lmm-forget report."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmm_forget.cli.report import main


def test_command_prints_the_table_or_json(
    make: Callable[..., dict[str, Any]], put: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = put(results=make("llm"))
    put("vision", status={"state": "failed", "error": "out of memory"})
    assert main([str(root)]) == 0
    table = capsys.readouterr().out
    assert "llm" in table and "failed: vision - out of memory" in table and "not seeds" in table
    assert main([str(root), "format=json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((root / "summary.json").read_text())


def test_records_are_read_once_and_settings_grouped_once(
    make: Callable[..., dict[str, Any]], put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        root = put(results=make("llm", seed=seed))
    calls: Counter[str] = Counter()

    def count_calls(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **options)

        return counted

    import lmm_forget.report

    modules = [lmm_forget.report, importlib.import_module("lmm_forget.cli.report")]
    for path in Path(lmm_forget.report.__file__).parent.glob("[a-z]*.py"):
        modules.append(importlib.import_module(f"lmm_forget.report.{path.stem}"))
    for module in modules:
        for name in ("load_sweep", "load_results", "build_job_rows", "group_rows_by_setting"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, count_calls(name, getattr(module, name)))
    assert main([str(root)]) == 0
    assert calls == {"load_sweep": 1, "load_results": 2, "build_job_rows": 1, "group_rows_by_setting": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "lmm-forget: error: nowhere: no such folder"),
        ([], "lmm-forget: error: found 0 folders, expected one"),
        (["nowhere", "format=pdf"], "lmm-forget: error: format=pdf is not known; choose one of: table, json"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message) and captured.err.count("\n") == 1 and captured.out == ""


def test_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lmm_forget", "report", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: lmm-forget report") and done.stderr == ""
