"""Twenty steps of a tiny LLaVA-OneVision in fp32 give the losses that are on file.

After a change that is meant to move them: `UPDATE_GOLDEN=1 pytest tests/training/test_golden.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.training.lesson import teach

FOLDER = Path(__file__).parent / "golden"


@pytest.mark.parametrize("recipe", ["sa_proj", "llm"])
def test_losses_are_those_on_file(recipe):
    result = teach(recipe, training={"learning_rate": 3e-3, "max_steps": 20}, hardware={"precision": "fp32"})[
        2
    ]
    path = FOLDER / f"llava_onevision_{recipe}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(
            json.dumps({"loss": [round(x, 6) for x in result.loss]}, indent=1) + "\n", encoding="utf-8"
        )
    assert result.loss == pytest.approx(json.loads(path.read_text("utf-8"))["loss"], rel=1e-3)
