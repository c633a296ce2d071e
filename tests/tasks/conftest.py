"""What every test of a published data set stands on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from omegaconf import OmegaConf

from lmm_forget.config import find_conf_dir
from lmm_forget.tasks.task import Task
from lmm_forget.tasks.task_loading import build_task

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `datasets` stores goes to the test's own folder."""
    for name in (
        "HF_DATASETS_CACHE",
        "DOWNLOADED_DATASETS_PATH",
        "EXTRACTED_DATASETS_PATH",
        "HF_MODULES_CACHE",
    ):
        monkeypatch.setattr(datasets.config, name, tmp_path / ".cache" / name.lower())
    return tmp_path / ".cache"


@pytest.fixture
def made() -> Callable[..., Task]:
    """The task of a YAML in conf/task, with changes."""

    def make(name: str, **changes: Any) -> Task:
        node = OmegaConf.to_container(OmegaConf.load(find_conf_dir() / "task" / f"{name}.yaml"))
        assert isinstance(node, dict)
        return build_task({**{str(key): value for key, value in node.items()}, **changes})

    return make
