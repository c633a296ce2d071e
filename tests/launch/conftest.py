"""The real command line in a folder of its own, with a stand-in for the work that a job does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).resolve().parent / "stand_in"
CommandLine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment() -> dict[str, str]:
    """Children import this checkout, and the stand-in experiment instead of one that trains."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(STAND_IN)]), "COLUMNS": "120"}


@pytest.fixture
def command(tmp_path: Path, environment: dict[str, str]) -> CommandLine:
    def call(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "lmm_forget.run", *arguments]
        return subprocess.run(
            line,
            cwd=tmp_path,
            env={**environment, **extra},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return call


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    def call(*arguments: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "lmm_forget.run", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)

    return call
