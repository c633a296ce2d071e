"""Twenty steps of every tiny random model in fp32 give the losses that are on file.

After a change that is meant to move them: `UPDATE_GOLDEN=1 pytest tests/contract/test_golden.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.models.subjects import RANDOM
from tests.training.lesson import teach

FOLDER = Path(__file__).parent / "golden"


@pytest.mark.parametrize(("name", "recipe"), [*((name, "llm") for name in RANDOM), ("llava_onevision", "sa_proj")])
def test_losses_are_those_on_file(name: str, recipe: str) -> None:
    settings = {"learning_rate": 3e-3, "max_steps": 20}
    result = teach(recipe, family=name, training=settings, hardware={"precision": "fp32"})[2]
    path = FOLDER / f"{name}_{recipe}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(
            json.dumps({"loss": [round(x, 6) for x in result.step_losses]}, indent=1) + "\n", encoding="utf-8"
        )
    assert result.step_losses == pytest.approx(json.loads(path.read_text("utf-8"))["loss"], rel=1e-3)
