"""Runs that several scenarios look at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.field.inputs import home, job, model_copy, task_yaml

pytestmark = pytest.mark.timeout(1800)  # a busy machine is not a failure


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: data, a task, a model, and a store with one finished job. Tests read it."""
    folder = home(tmp_path_factory.mktemp("shared"))
    model_copy(folder / "model")
    job(folder, f"model.path={folder / 'model'}", "data.eval_samples=8", into="plain")
    return folder


@pytest.fixture(scope="session")
def plain(shared_home: Path) -> Path:
    """The folder of that job. Tests read it."""
    return shared_home / "multirun" / "field" / "plain"


@pytest.fixture
def own_home(shared_home: Path, tmp_path: Path) -> Path:
    """A copy of that folder, store and job included, which a test may change."""
    folder = Path(shutil.copytree(shared_home, tmp_path / "home", symlinks=True))
    task_yaml(folder, folder / "data.jsonl")
    return folder
