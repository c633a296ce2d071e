"""Prompts stay what they are, to the letter, in every family's chat format, until somebody means to change them."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from lmm_forget.tasks.task import Task
from tests.models.tiny import FAMILIES
from tests.tasks import prompts


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    return prompts.tasks(tmp_path_factory.mktemp("copies"))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_those_of_the_golden_file(family: str, every: list[Task]) -> None:
    file = Path(prompts.GOLDEN / f"prompts_{family}.txt")
    expected, found = file.read_text(encoding="utf-8"), prompts.golden(family, every)
    change = "\n".join(
        difflib.unified_diff(expected.splitlines(), found.splitlines(), "golden", "now", lineterm="", n=1)
    )
    assert found == expected, f"python -m tests.tasks.prompts accepts this:\n{change}"


def test_every_task_is_in_the_golden_files() -> None:
    names = {path.stem for path in (prompts.find_conf_dir() / "task").glob("*.yaml")} - {"blip_captions"}
    for family in FAMILIES:
        text = (prompts.GOLDEN / f"prompts_{family}.txt").read_text(encoding="utf-8")
        assert {line.split()[1] for line in text.splitlines() if line.startswith("=== ")} == names
