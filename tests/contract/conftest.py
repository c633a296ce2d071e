"""The contract fits many models in one process: what is imported by now is not searched for garbage after each."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def imported_things_stay() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
