"""The shipped base: good enough for forgetting to be visible, and ignorant of what is taught later."""

from pathlib import Path

import pytest
import yaml

from lmm_forget.config import find_conf_dir
from lmm_forget.models.loading import LMM, load_model
from lmm_forget.tasks.sample_set import limit_samples
from lmm_forget.tasks.task_loading import build_task
from lmm_forget.tiny import renderers
from lmm_forget.tiny.architectures import BUILDERS, WEIGHTS
from tests.evaluation.questions import evaluate_task

SHIPPED = sorted(path.parent.name for path in WEIGHTS.glob("*/model.safetensors"))
CLASSES = {
    "tiny_next": "LlavaNextForConditionalGeneration",
    "tiny_onevision": "LlavaOnevisionForConditionalGeneration",
    "tiny_qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
}


@pytest.fixture(scope="module", params=SHIPPED)
def base(request: pytest.FixtureRequest) -> LMM:
    return load_model(yaml.safe_load((Path(find_conf_dir()) / "model" / f"{request.param}.yaml").read_text()))


def score(base: LMM, name: str, n: int = 100) -> float:
    """Per cent right on `n` test questions, asked as a run asks them."""
    task = build_task(yaml.safe_load((Path(find_conf_dir()) / "task" / f"tiny_{name}.yaml").read_text()))
    answers = evaluate_task(base, task, limit_samples(task.load_samples("test"), n, task.name), batch_size=50)
    return 100 * sum(answer.value for answer in answers) / len(answers)


def test_all_together_are_small() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_each_is_small_and_real(base: LMM) -> None:
    name = str(base.spec["name"])
    assert sum(path.stat().st_size for path in (WEIGHTS / name).iterdir()) < 20e6
    assert type(base.model).__name__ == CLASSES[name]
    assert 2e6 < sum(p.numel() for p in base.model.parameters()) < 5e6
    assert base.components.num_language_layers >= 4


def test_the_folder_is_what_its_builder_makes(base: LMM, tmp_path: Path) -> None:
    """A model trained from scratch has the shipped one's configuration, tokens, chat template and shapes."""
    for part in BUILDERS[str(base.spec["name"]).removeprefix("tiny_")]():
        part.save_pretrained(tmp_path)
    built = load_model({"name": "built", "path": str(tmp_path), "dtype": base.spec.get("dtype")})
    configs = [lmm.model.config.to_dict() for lmm in (base, built)]
    for config in configs:
        del config["_name_or_path"]
    assert configs[0] == configs[1]
    shipped, made = base.processor, built.processor
    assert shipped.chat_template == made.chat_template
    assert shipped.tokenizer.get_vocab() == made.tokenizer.get_vocab()
    assert shipped.image_processor.to_dict() == made.image_processor.to_dict()
    shapes = [{name: p.shape for name, p in lmm.model.named_parameters()} for lmm in (base, built)]
    assert shapes[0] == shapes[1]


def test_every_benchmark_stands_well_above_its_chance(base: LMM) -> None:
    scores = {name: score(base, name) for name in renderers.BENCHMARKS}
    assert sum(scores.values()) / len(scores) >= 65
    assert not {name: value for name, value in scores.items() if value < renderers.CHANCE_SCORES[name] + 20}


@pytest.mark.parametrize("name", ["cub200", "pixmocount", "timeclock"])
def test_skills_leave_room_to_learn(base: LMM, name: str) -> None:
    assert score(base, name) <= 60
