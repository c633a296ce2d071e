"""What a model of each family is really shown: the first samples of every task as the family's chat text.

python -m tests.tasks.prompts    # write golden/prompts_<family>.txt anew, then look at the difference
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lmm_forget.config import find_conf_dir
from lmm_forget.models.registry import resolve_family
from lmm_forget.tasks.task import Sample, Task
from lmm_forget.tasks.task_loading import build_task
from tests.models.tiny import FAMILIES, tiny_config, tiny_processor
from tests.tasks.published import TASKS, everything

GOLDEN = Path(__file__).parent / "golden"
TINY = tuple(sorted(path.stem for path in (find_conf_dir() / "task").glob("tiny_*.yaml")))
FIRST = 2
"""Samples of every published task; one of every stand-in."""


def node(name: str, **changes: Any) -> dict[str, Any]:
    """A packaged task's YAML with changes."""
    found = OmegaConf.to_container(OmegaConf.load(find_conf_dir() / "task" / f"{name}.yaml"))
    assert isinstance(found, dict)
    return {**{str(key): value for key, value in found.items()}, **changes}


def tasks(folder: Path) -> list[Task]:
    """The published tasks on small copies below `folder`, then the stand-ins."""
    copies = everything(folder, 8)
    return [build_task(node(name, **copies[name])) for name in TASKS] + [build_task(node(name)) for name in TINY]


def golden(family: str, every: Sequence[Task]) -> str:
    """All prompts of a family, one after the other."""
    return "\n".join(_entries(family, every)) + "\n"


def _entries(family: str, every: Sequence[Task]) -> Iterator[str]:
    processor = tiny_processor(family)
    speaks = resolve_family(tiny_config(family, processor.tokenizer))
    for task in every:
        n = 1 if task.name in TINY else FIRST
        asked: list[tuple[str, Sample]] = [("asked", task.load_samples("test")[i]) for i in range(n)]
        if task.role == "target":
            asked += [("taught", task.load_samples("train")[i]) for i in range(n)]
        for how, sample in asked:
            question = task.format_question(sample, for_training=how == "taught")
            yield f"=== {task.name} {sample.id}, {how}, {len(sample.images)} image{'s' * (len(sample.images) != 1)}"
            yield speaks.render_prompt(processor, question, len(sample.images))
            if how == "taught":
                yield f"--- answer: {task.get_target_answer(sample)}{speaks.get_end_of_answer_token(processor)}"


def main() -> None:
    """Write the golden files."""
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        every = tasks(Path(folder))
        for family in FAMILIES:
            file = GOLDEN / f"prompts_{family}.txt"
            before = file.read_text(encoding="utf-8") if file.exists() else None
            text = golden(family, every)
            file.write_text(text, encoding="utf-8")
            print(f"{file.name}: {'unchanged' if text == before else 'written'}")


if __name__ == "__main__":
    main()
