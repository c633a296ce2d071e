"""The tiny world: repeatable pictures, separate splits, true answers, and the formats it stands in for."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from lmm_forget.config import find_conf_dir
from lmm_forget.errors import DataError
from lmm_forget.tasks.task_loading import build_task
from lmm_forget.tasks.tiny_task import TinyTask
from lmm_forget.tiny import renderers

TARGETS_AND_SUITE = (*renderers.SKILLS, *renderers.BENCHMARKS)


def node(name: str) -> dict:
    return yaml.safe_load((Path(find_conf_dir()) / "task" / f"tiny_{name}.yaml").read_text())


def picture(name: str, split: str, number: int) -> str:
    return hashlib.sha256(renderers.render_image(name, split, number).image.tobytes()).hexdigest()


@pytest.mark.parametrize("name", list(renderers.RENDERERS))
def test_a_picture_depends_on_name_split_and_number_alone(name: str) -> None:
    first = renderers.render_image(name, "test", 7)
    renderers.render_image(name, "train", 3)
    again = renderers.render_image(name, "test", 7)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.questions == again.questions
    assert first.image.size == (64, 64)


@pytest.mark.parametrize("name", TARGETS_AND_SUITE)
def test_train_validation_and_test_share_no_picture(name: str) -> None:
    seen = {split: {picture(name, split, i) for i in range(400)} for split in ("train", "validation", "test")}
    assert all(len(pictures) > 390 for pictures in seen.values())
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


@pytest.mark.parametrize("name", TARGETS_AND_SUITE)
def test_every_task_yaml_builds_and_its_references_score_full_marks(name: str) -> None:
    task = build_task(node(name))
    assert task.name == f"tiny_{name}"
    assert task.role == ("target" if name in renderers.SKILLS else "held_out")
    for sample in [task.load_samples("test")[i] for i in range(40)]:
        assert task.score_answer(task.get_target_answer(sample), sample)["value"] == 1.0
        assert task.score_answer("no such thing", sample)["value"] == 0.0


@pytest.mark.parametrize("name", TARGETS_AND_SUITE)
def test_asked_questions_end_with_the_instruction_the_base_was_shown(name: str) -> None:
    task = build_task(node(name))
    sample = task.load_samples("test")[0]
    assert task.format_question(sample, for_training=False) == sample.question + renderers.INSTRUCTIONS[name]


@pytest.mark.parametrize("name", TARGETS_AND_SUITE)
def test_no_constant_answer_beats_the_stated_chance(name: str) -> None:
    task = build_task(node(name))
    samples = [task.load_samples("test")[i] for i in range(200)]
    guesses = {answer for sample in samples for answer in sample.answers[:1]}
    by_question = {}
    for sample in samples:
        key = re.sub(r"\n.*", "", sample.question, flags=re.S)
        by_question.setdefault(key, Counter()).update([sample.answers[0]])
    best = sum(counter.most_common(1)[0][1] for counter in by_question.values()) / len(samples) * 100
    assert len(guesses) >= 2
    # 200 samples: the best guess per question may look better than its expectation by luck, never by much.
    assert best < renderers.CHANCE_SCORES[name] + 25


def test_questions_of_one_picture_share_its_image_id() -> None:
    task = build_task(node("docvqa"))
    a, b, c = (task.load_samples("test")[i] for i in range(3))
    assert a.image_id == b.image_id != c.image_id
    assert a.images[0].tobytes() == b.images[0].tobytes()
    assert len({a.id, b.id, c.id}) == 3


def test_counting_uses_the_papers_wording() -> None:
    task = build_task(node("pixmocount"))
    sample = task.load_samples("train")[0]
    assert re.fullmatch(r"How many \w+ are in this image\?", sample.question)
    assert re.fullmatch(r"There (is|are) \d \w+ in this image\.", task.get_target_answer(sample))


def test_captions_hold_number_words_sometimes() -> None:
    task = build_task(node("captions"))
    texts = [task.load_samples("test")[i].answers[0] for i in range(200)]
    share = sum(bool(re.search(r"\b(two|three)\b", text)) for text in texts) / len(texts)
    assert 0.1 < share < 0.3
    assert not any(char.isdigit() for text in texts for char in text)


def test_pretraining_never_uses_a_skills_questions() -> None:
    asked = {
        q.text.split("\n")[0]
        for name in renderers.CAPTIONS
        for i in range(60)
        for q in renderers.render_image(name, "x", i).questions
    }
    asked |= {
        q.text.split("\n")[0]
        for name in renderers.BENCHMARKS
        for i in range(60)
        for q in renderers.render_image(name, "x", i).questions
    }
    taught = {
        q.text.split("\n")[0]
        for name in renderers.SKILLS
        for i in range(60)
        for q in renderers.render_image(name, "x", i).questions
    }
    assert not asked & taught


def test_unknown_renderer_and_missing_split_are_said_in_one_line() -> None:
    with pytest.raises(DataError, match="no renderer 'cats'; there are cub200"):
        build_task(node("cub200") | {"renderer": "cats"})
    task = build_task(node("ai2d"))
    assert isinstance(task, TinyTask)
    with pytest.raises(DataError, match="no samples in split 'train'; it has test"):
        task.load_samples("train")


def test_a_field_the_task_does_not_take_is_named() -> None:
    with pytest.raises(DataError, match="colour"):
        build_task(node("ai2d") | {"colour": "red"})
