"""Fixtures of the tests that need a real Slurm; they are skipped, with the reason, where none runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, slurm


@pytest.fixture(scope="session")
def slurm_conf() -> Path:
    """Skips where no Slurm runs."""
    conf, trouble = slurm()
    if trouble:
        pytest.skip(trouble)
    return conf


@pytest.fixture
def cluster(tmp_path: Path, slurm_conf: Path) -> Callable[..., Cluster]:
    return lambda stand_in=True: Cluster(tmp_path, slurm_conf, stand_in)
