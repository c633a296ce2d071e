"""The seventeen published tasks on small copies in their published schema, through the hub's own `datasets` code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from lmm_forget.tasks.hub_samples import HubSamples
from lmm_forget.tasks.task import Task
from tests.tasks import published

Made = Callable[..., Task]
LETTER = "\nAnswer with the option's letter from the given choices directly."
# What the model is asked for the first row, what is accepted, and its image id (None: named by the image's content).
FIRST = {
    "cub200": (f"Which species?{LETTER}\n{published.LISTED}", ("C",), None),
    "pixmocount": (
        "How many dogs are in this image?\n"
        "Answer with integer and nothing else. For example, if the answer is 1, you should output 1.",
        ("0",),
        None,
    ),
    "pathvqa": (
        "Look at the medical image and answer the following question: what is present?\n"
        "For questions that can be answered with a yes or no, just answer yes or no. "
        "Otherwise, provide an answer in the medical domain.",
        ("cardiovascular",),
        None,
    ),
    "textvqa": (
        "what is the Brand?\nAnswer the question using a single word or phrase.",
        ("nokia",) * 3 + ("Nokia 3310",) * 4 + ("phone",) * 3,
        "im0",
    ),
    "timeclock": (
        "What time does the clock show in this image?\n"
        "Answer with the time in HH:MM format. For example, if it's 3:45, output 3:45.",
        ("00:00",),
        None,
    ),
    "coco_clock": (
        "What time does the clock show in this image?\n"
        "Answer with the time in HH:MM format. For example, if it's 3:5, output 03:05.",
        ("00:05",),
        None,
    ),
    "openimg_clock": (
        "What time does the clock show in this image?\n"
        "Answer with the time in HH:MM format. For example, if it's 3:45, output 3:45.",
        ("00:59",),
        None,
    ),
    "ai2d": (f"What is B?\nA. root\nB. leaf\nC. stem\nD. bud{LETTER}", ("A",), None),
    "chartqa": ("How much?\nAnswer the question with a single word.", ("14",), None),
    "docvqa": (
        "What is the date?\nAnswer the question using a single word or phrase.",
        ("1/8/93", "1/8/1993"),
        "100",
    ),
    "infovqa": (
        "Which year?\nAnswer the question using a single word or phrase.",
        ("1999",),
        "http://x/0.jpg",
    ),
    "realworldqa": (
        "Which way?\nA. Left\nB. Right\nC. Ahead\n"
        "Please answer directly with only the letter of the correct option and nothing else.",
        ("B",),
        None,
    ),
    "seedbench": (
        f"How many towels are in the image?\nA. One\nB. Two\nC. Three\nD. Four{LETTER}",
        ("A",),
        "1454426_0",
    ),
    "scienceqa": (f"Which is a mammal?\nA. cat\nB. trout{LETTER}", ("A",), None),
    "mmstar": (
        "Which option is right?\nOptions: A: one, B: two, C: three, D: four"
        "\nAnswer with the option's letter from the given choices directly",
        ("A",),
        None,
    ),
    "ocrbench": ("what is written in the image?", ("CENTRE",), None),
    "countbench": ("How many cups are there?\nAnswer the question with number only.", ("2",), None),
}


@pytest.mark.parametrize("name", published.TASKS)
def test_every_task_reads_its_published_schema(name: str, tmp_path: Path, made: Made) -> None:
    task = made(name, path=str(published.write(name, tmp_path / "repo")))
    samples = task.validate_split("test")
    assert len(samples) == (6 if name == "seedbench" else 8)  # of eight, two are videos
    question, answers, image_id = FIRST[name]
    first = samples[0]
    assert task.format_question(first, for_training=False) == question
    assert first.answers == answers
    assert first.image_id == image_id if image_id else len(first.image_id) == 16
    assert [image.mode for image in first.images] == ["RGB"] and first.images[0].size == (20, 12)
    assert len({sample.id for sample in samples}) == len(samples)
    for sample in samples:
        scores = task.score_answer(task.get_target_answer(sample), sample)
        assert scores["value"] is not None and 0.0 < scores["value"] <= 1.0, sample
        assert scores["compat"] is not None
    assert task.get_provenance() == {"test": "local copy"}


@pytest.mark.parametrize("name", published.TASKS)
def test_a_saved_data_set_a_file_and_a_stream_are_the_same_samples(name: str, tmp_path: Path, made: Made) -> None:
    config, splits = published.LAYOUT.get(name, ("default", ("test",)))
    published.table(name, 8).save_to_disk(str(tmp_path / "saved"))
    published.table(name, 8).to_parquet(str(tmp_path / "rows.parquet"))
    ways = [
        made(name, path={"test": str(tmp_path / "saved")}),
        made(name, path={"test": str(tmp_path / "rows.parquet")}, streaming=False),
        made(name, path={"test": str(tmp_path / "rows.parquet")}, streaming=True),
        made(name, path=str(published.write(name, tmp_path / "repo")), streaming=True),
    ]
    parts = [task.load_samples("test") for task in ways]
    assert all(isinstance(part, HubSamples) for part in parts)
    assert [part.table.is_streamed for part in parts] == [False, False, True, True]  # type: ignore[attr-defined]
    plain = [[(s.id, s.image_id, s.question, s.answers, s.choices, s.meta) for s in part] for part in parts]
    assert plain[0] == plain[1] == plain[2] == plain[3] and len(plain[0]) > 5
    stream = parts[2]
    assert stream[3].id == plain[0][3][0] and stream[1].id == plain[0][1][0], "reading back starts over"
    assert [s.id for s in stream[2:4]] == [row[0] for row in plain[0][2:4]]
    again = pickle.loads(pickle.dumps(stream))
    assert again[2].images[0].tobytes() == parts[0][2].images[0].tobytes()
    assert config and splits


def test_video_questions_are_asked_when_switched_on(tmp_path: Path, made: Made) -> None:
    task = made("seedbench", path=str(published.write("seedbench", tmp_path)), where=None)
    samples = task.validate_split("test")
    assert [len(sample.images) for sample in samples] == [1, 1, 1, 2, 1, 1, 1, 2]
    assert [sample.meta["data_type"] for sample in samples][3] == "video"


def test_only_the_columns_that_are_needed_are_read(tmp_path: Path, made: Made) -> None:
    task = made("textvqa", path=str(published.write("textvqa", tmp_path)))
    part = task.load_samples("test")
    assert isinstance(part, HubSamples)
    assert set(part.table.read_row(0)) == {"question_id", "image_id", "question", "answers", "image"}
    assert "image" not in task.list_columns(with_images=False)  # type: ignore[attr-defined]
    assert next(part.iterate_without_images()).question == "what is the Brand?"


def test_splits_are_cut_by_image(tmp_path: Path, made: Made) -> None:
    task = made("textvqa", path=str(published.write("textvqa", tmp_path, 60)), validation_fraction=0.4)
    train, validation, test = (task.validate_split(split) for split in ("train", "validation", "test"))
    assert len(train) + len(validation) == 60 and len(test) == 60
    shown = [{sample.image_id for sample in part} for part in (train, validation)]
    assert shown[0] and shown[1] and not shown[0] & shown[1]
    assert task.get_target_answer(train[0]) == "Nokia 3310", "the most common answer is taught"
    assert task.format_question(train[0], for_training=True) == "what is the Brand?"
    assert len({task.fingerprint_split(split) for split in ("train", "validation", "test")}) == 3
    whole = made("textvqa", path=str(tmp_path), validation_fraction=0)
    assert len(whole.validate_split("train")) == 60


def test_training_prompts(tmp_path: Path, made: Made) -> None:
    path = str(published.write("pathvqa", tmp_path))
    bare, as_evaluated = made("pathvqa", path=path), made("pathvqa", path=path, train_prompt="as_evaluated")
    sample = bare.validate_split("train")[0]
    assert bare.format_question(sample, for_training=True) == "what is present?"
    assert as_evaluated.format_question(sample, for_training=True) == bare.format_question(sample, for_training=False)
    assert len(bare.validate_split("validation")) == 8


def test_the_fingerprint_follows_content_not_place(tmp_path: Path, made: Made) -> None:
    one = made("ai2d", path=str(published.write("ai2d", tmp_path / "one")))
    same = made("ai2d", path=str(published.write("ai2d", tmp_path / "two")))
    assert one.fingerprint_split("test") == same.fingerprint_split("test")
    assert made("ai2d", path=str(published.write("ai2d", tmp_path / "more", 9))).fingerprint_split(
        "test"
    ) != one.fingerprint_split("test")
