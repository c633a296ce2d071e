"""Reading ahead in worker processes changes nothing but who does the work."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from lmm_forget.errors import DataError, LmmForgetError
from lmm_forget.evaluation.engines.hf import HuggingFaceEngine
from lmm_forget.evaluation.eval_set import EvalSet
from lmm_forget.evaluation.evaluate import evaluate
from lmm_forget.evaluation.prefetch import ReadRequest, make_read_requests, prefetch_results
from lmm_forget.evaluation.question_encoding import encode_question_batches, index_questions
from lmm_forget.models.loading import LMM
from lmm_forget.store import CachedResponse, ResponseCache, Store
from lmm_forget.tasks.hub import HubTask
from lmm_forget.tasks.sample_set import SampleSet, as_sample_set, limit_samples
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from lmm_forget.tasks.task import Task
from tests.evaluation.questions import Questions, sample
from tests.models.tiny import tiny_lmm
from tests.tasks.published import png


@pytest.fixture(scope="module")
def onevision() -> LMM:
    return tiny_lmm("llava_onevision")


def published(folder: Path, *, streaming: bool, n: int = 23, bad: int | None = None) -> HubTask:
    """Questions of different lengths in a parquet file, so that batches mix the order of the file."""
    rows = [
        {"q": f"How many {'red ' * (i * 7 % 5)}things?", "a": str(i), "pic": png(i) if i != bad else b"no"}
        for i in range(n)
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "rows.parquet"))
    return HubTask(
        name="mine",
        role="held_out",
        path=str(folder / "rows.parquet"),
        splits={"test": "test"},
        fields={"question": "q", "answer": "a", "image": "pic"},
        streaming=streaming,
        scorer=ExactMatchScorer(),
        max_new_tokens=2,
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def everything(lmm: LMM, task: Task, samples: SampleSet, workers: int) -> tuple[Any, list[Any]]:
    looked = index_questions(lmm, task, samples, 4, workers)
    batches = list(encode_question_batches(lmm, task, samples, looked[0], workers))
    return looked, [
        [list(places), ready.sample_ids, {name: tensor.tolist() for name, tensor in ready.inputs.items()}]
        for places, ready in batches
    ]


def test_workers_read_the_same_in_the_same_order(onevision: LMM, tmp_path: Path) -> None:
    (tmp_path / "stream").mkdir()
    (tmp_path / "store").mkdir()
    state = torch.random.get_rng_state()
    found = {}
    for name, task in (
        ("drawn", Questions(23)),
        ("stream", published(tmp_path / "stream", streaming=True)),
        ("store", published(tmp_path / "store", streaming=False)),
    ):
        samples = limit_samples(task.load_samples("test"), 21, task.name)
        here, there = (everything(onevision, task, samples, workers) for workers in (0, 2))
        assert here == there
        assert [ids for _, ids, _ in here[1]] == [
            tuple(here[0][2][place].id for place in batch) for batch in here[0][0]
        ]
        assert sorted(place for batch in here[0][0] for place in batch) == list(range(21))
        found[name] = here
    assert found["stream"] == found["store"], "a stream and a copy are asked the same"
    assert found["store"][0][0] != [list(range(i, min(i + 4, 21))) for i in range(0, 21, 4)], "they are mixed"
    assert torch.equal(torch.random.get_rng_state(), state), "nobody else's random numbers are used up"


def test_a_stream_is_read_once_from_its_beginning_to_its_end(
    onevision: LMM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmm_forget.evaluation.question_encoding.SORT_WINDOW_BATCHES", 2)
    task = published(tmp_path, streaming=True)
    samples = task.load_samples("test")
    looked = index_questions(onevision, task, samples, 4, 0)
    assert any(list(batch) != sorted(batch) for batch in looked[0])
    opened = []
    rows = samples.table.iterate_rows  # type: ignore[union-attr]
    monkeypatch.setattr(samples.table, "iterate_rows", lambda *given: opened.append(1) or rows(*given))  # type: ignore[union-attr]
    left = [batch for i, batch in enumerate(looked[0]) if i != 1]  # as after a stop in the middle
    assert [list(places) for places, _ in encode_question_batches(onevision, task, samples, left, 0)] == left
    assert len(opened) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_answers_do_not_depend_on_workers(onevision: LMM, tmp_path: Path, workers: int) -> None:
    task = Questions(9)
    engine = HuggingFaceEngine(onevision)
    alone = evaluate(onevision, [EvalSet(task, task.made)], engine, batch_size=9)
    cache = ResponseCache(Store(tmp_path / "store"), "model")
    found = evaluate(onevision, [EvalSet(task, task.made)], engine, cache, batch_size=2, num_workers=workers)
    assert (alone.num_generated, found.num_generated) == (9, 9)
    assert [(a.sample_id, a.text) for a in found.answers["questions"]] == [
        (a.sample_id, a.text) for a in alone.answers["questions"]
    ]
    again = evaluate(onevision, [EvalSet(task, task.made)], engine, ResponseCache(cache.store, "model"), batch_size=2)
    assert (again.num_generated, again.answers, again.scores) == (0, found.answers, found.scores)


def test_a_question_that_an_earlier_batch_asks_is_not_asked_again() -> None:
    exam = EvalSet(Questions(4), [])
    exam.batches, exam.keys = [[0, 1], [3, 2]], ["a", "b", "a", "c"]
    said = CachedResponse("yes", 1, 1.0)
    assert exam.select_missing_batches({}) == [[0, 1], [3]]
    assert exam.select_missing_batches({"b": said}) == [[0], [3]]
    assert exam.select_missing_batches({"a": said, "b": said}) == [[3]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [True, False])
def test_what_cannot_be_read_is_one_line_when_its_turn_comes(
    onevision: LMM, tmp_path: Path, workers: int, streaming: bool
) -> None:
    task = published(tmp_path, streaming=streaming, n=12, bad=9)
    message = r"task mine: sample test-9: image cannot be read \(not an image file\)$"
    with pytest.raises(DataError, match=f"^{message}"):
        index_questions(onevision, task, task.load_samples("test"), 4, workers)
    batches = [[3, 0], [8, 9], [1, 2]]
    read = []
    with pytest.raises(DataError, match=f"^{message}"):
        for places, _ in encode_question_batches(onevision, task, task.load_samples("test"), batches, workers):
            read.append(list(places))
    assert read == [[3, 0]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_question_that_does_not_fit_is_named_by_a_worker_too(onevision: LMM, workers: int) -> None:
    task = Questions(4)
    task.made[2] = sample(2, "long " * 200)
    with pytest.raises(DataError, match=r"^task questions: sample q2: [^\n]*512[^\n]*$"):
        list(encode_question_batches(onevision, task, as_sample_set(task.made), [[0, 1], [3, 2]], workers))


def test_a_worker_that_is_killed_is_one_line() -> None:
    def work(job: ReadRequest) -> int:
        if job.positions[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return job.positions[0]

    task = Questions(3)
    with pytest.raises(LmmForgetError, match=r"^task t: a process that reads samples was ended [^\n]*num_workers=0"):
        list(
            prefetch_results(
                work,
                make_read_requests(task, as_sample_set(task.made), [[0], [1], [2]]),
                num_workers=1,
                description="task t",
            )
        )
