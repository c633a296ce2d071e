"""Questions put to tiny random models of all three families: exact, in order, and loud when something is wrong."""

from __future__ import annotations

import dataclasses
import logging
import re
import warnings
from typing import Any

import pytest
import torch

from lmm_forget.errors import DataError, LmmForgetError
from lmm_forget.evaluation.engines.hf import HuggingFaceEngine, generate_answers
from lmm_forget.evaluation.eval_set import EvalSet
from lmm_forget.evaluation.evaluate import evaluate
from lmm_forget.evaluation.scored_answers import Answer
from lmm_forget.models.loading import LMM
from lmm_forget.progress import NullProgress
from tests.evaluation.flips import flips
from tests.evaluation.questions import Questions, evaluate_task, sample
from tests.models.tiny import picture, tiny_lmm


@pytest.fixture(scope="module")
def onevision() -> LMM:
    return tiny_lmm("llava_onevision")


def texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def test_the_comparison_notices_padding_that_is_attended_to(onevision: LMM, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Questions(16)
    one = evaluate_task(onevision, task, task.made, batch_size=1)
    encode = type(onevision.family).encode_batch

    def unmasked(*args: Any, **options: Any) -> Any:
        encoded = encode(*args, **options)
        encoded.tensors["attention_mask"].fill_(1)
        return encoded

    monkeypatch.setattr(type(onevision.family), "encode_batch", unmasked)
    many = evaluate_task(onevision, task, task.made, batch_size=16)
    assert flips(one, many).unexplained


@pytest.mark.parametrize("batch_size", [1, 5])
def test_answers_and_gaps_equal_a_loop_without_cache(onevision: LMM, batch_size: int) -> None:
    task = Questions(5, max_new_tokens=4)
    answers = evaluate_task(onevision, task, task.made, batch_size=batch_size)
    tokenizer = onevision.processor.tokenizer
    for one, answer in zip(task.made, answers, strict=True):
        question = task.format_question(one, for_training=False)
        batch = onevision.family.encode_batch(onevision.processor, [question], [list(one.images)]).tensors
        ids, gaps = batch.pop("input_ids"), []
        batch.pop("attention_mask")
        new: list[int] = []
        while len(new) < 4 and not (new and new[-1] in onevision.end_token_ids):
            with torch.no_grad():
                logits = onevision.model(input_ids=ids, **batch).logits[0, -1]
            best = logits.topk(2)
            gaps.append((best.values[0] - best.values[1]).item())
            new.append(int(best.indices[0]))
            ids = torch.cat([ids, best.indices[:1][None]], dim=1)
        assert answer.text == tokenizer.decode(new, skip_special_tokens=True)
        assert answer.tokens == len(new)
        assert answer.logit_margin == pytest.approx(min(gaps), abs=1e-4)


def test_an_answer_stops_at_its_end_token(onevision: LMM) -> None:
    task = Questions(8, max_new_tokens=6)
    free = evaluate_task(onevision, task, task.made)
    assert {answer.tokens for answer in free} == {6}
    ids = onevision.processor.tokenizer(free[3].text, add_special_tokens=False)["input_ids"]
    end = ids[2]
    stopped = evaluate_task(dataclasses.replace(onevision, end_token_ids=[end]), task, task.made)
    tokenizer = onevision.processor.tokenizer
    assert stopped[3].tokens == ids.index(end) + 1
    assert stopped[3].text == tokenizer.decode(ids[: ids.index(end)])
    assert all(b.logit_margin >= a.logit_margin - 1e-5 for a, b in zip(free, stopped, strict=True))
    assert {answer.tokens for answer in stopped} != {6}


def test_the_checkpoint_s_sampling_defaults_are_ignored_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    lmm, task = tiny_lmm("llava_onevision"), Questions(4)
    plain = evaluate_task(lmm, task, task.made)
    theirs = lmm.model.generation_config
    theirs.do_sample, theirs.temperature, theirs.top_k, theirs.repetition_penalty = True, 0.1, 3, 5.0
    logging.getLogger("transformers").propagate = True
    try:
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
            warnings.simplefilter("error")
            again = evaluate_task(lmm, task, task.made)
    finally:
        logging.getLogger("transformers").propagate = False
    assert again == plain
    assert caplog.records == []
    assert lmm.model.generation_config is theirs and theirs.repetition_penalty == 5.0


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(onevision: LMM, training: bool) -> None:
    task = Questions(2)
    onevision.model.train(training)
    try:
        evaluate_task(onevision, task, task.made)
        assert onevision.model.training is training
    finally:
        onevision.model.eval()
    assert all(parameter.grad is None for parameter in onevision.model.parameters())


def test_bf16_weights_answer_without_autocast() -> None:
    lmm, task = tiny_lmm("llava_onevision", dtype=torch.bfloat16), Questions(4)
    with torch.autocast("cpu", dtype=torch.float16):
        inside = evaluate_task(lmm, task, task.made)
    assert inside == evaluate_task(lmm, task, task.made)


class Recorder(NullProgress):
    def __init__(self) -> None:
        self.phases: list[tuple[str, int, str]] = []
        self.done: list[int] = []

    def start_phase(self, name: str, total: int, unit: str) -> None:
        self.phases.append((name, total, unit))

    def advance(self, done: int, **info: float | int | str) -> None:
        self.done.append(done)


def test_one_phase_over_all_tasks_and_answers_in_order(onevision: LMM) -> None:
    first, second = Questions(7), Questions(5, name="others", max_new_tokens=5, macro="kind")
    progress = Recorder()
    engine = HuggingFaceEngine(onevision)
    eval_sets = [EvalSet(task, task.made) for task in (first, second)]
    together = evaluate(onevision, eval_sets, engine, batch_size=3, progress=progress).answers
    assert progress.phases == [("evaluate", 12, "question")]
    assert [done for done in progress.done if done] == [3, 3, 1, 3, 2]
    for task in (first, second):
        assert [answer.sample_id for answer in together[task.name]] == [one.id for one in task.made]
        assert evaluate_task(onevision, task, batch_size=3) == together[task.name]
    answer = together["others"][1]
    assert (answer.task, answer.image_id, answer.group) == ("others", "i0", "odd")
    assert answer.question.endswith("\nAnswer!") and answer.references == ("a bird", "bird")
    assert together["questions"][1].group is None
    assert evaluate_task(onevision, first, []) == []


def test_a_window_does_not_change_answers(onevision: LMM, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Questions(9)
    whole = evaluate_task(onevision, task, task.made, batch_size=2)
    monkeypatch.setattr("lmm_forget.evaluation.question_encoding.SORT_WINDOW_BATCHES", 1)
    assert flips(whole, evaluate_task(onevision, task, task.made, batch_size=2)).unexplained == ()


def test_limit_per_task(onevision: LMM) -> None:
    task = Questions(9)
    eval_set = EvalSet.from_task(task, "test", 4, "fail")
    assert len(evaluate_task(onevision, task, eval_set.samples)) == 4


def test_a_reserved_token_in_a_question_names_the_sample(onevision: LMM) -> None:
    task = Questions(4)
    task.made[2] = sample(2, "What does <image> say?")
    with pytest.raises(DataError, match="^task questions: sample q2: its question contains .*<image>"):
        evaluate_task(onevision, task, task.made)


def test_a_question_longer_than_the_context_names_the_sample(onevision: LMM) -> None:
    task = Questions(3)
    task.made[1] = sample(1, "long " * 200)
    with pytest.raises(DataError, match="^task questions: sample q1: .*512"):
        evaluate_task(onevision, task, task.made)
    length = onevision.family.encode_batch(onevision.processor, ["?"], [[picture()]]).lengths[0]
    room = onevision.family.context_length - length
    assert len(generate_answers(onevision, ["?"], [[picture()]], room)) == 1
    with pytest.raises(DataError, match=f"{length} prompt tokens and {room + 1} answer tokens are more than"):
        generate_answers(onevision, ["?"], [[picture()]], room + 1)


def test_logits_that_are_not_finite_end_the_run() -> None:
    lmm, task = tiny_lmm("llava_onevision"), Questions(3)
    with torch.no_grad():
        lmm.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(LmmForgetError, match="task questions: the model's logits are not finite"):
        evaluate_task(lmm, task, task.made)


def test_any_failure_names_the_samples_and_is_never_an_empty_answer(
    onevision: LMM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **options: Any) -> Any:
        raise RuntimeError("out of memory\nwith details")

    task = Questions(4)
    monkeypatch.setattr(type(onevision.family), "encode_batch", fails)
    with pytest.raises(LmmForgetError) as caught:
        evaluate_task(onevision, task, task.made)
    assert re.fullmatch(
        r"task questions: evaluating 4 samples \(q\d, q\d, q\d …\) failed: RuntimeError: out of memory",
        str(caught.value),
    )


def test_a_sample_that_cannot_be_made_is_named(onevision: LMM) -> None:
    class Broken(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            raise OSError("gone")

    with pytest.raises(DataError, match="task questions: sample number 0 cannot be read: OSError: gone"):
        evaluate_task(onevision, Questions(1), Broken([1]))


@pytest.mark.parametrize(
    ("score", "value"),
    [("value", None), ("value", float("nan")), ("value", 1.5), ("tolerant", -0.1), ("compat", float("nan"))],
)
def test_a_scorer_out_of_range_is_refused(onevision: LMM, score: str, value: float | None) -> None:
    task = Questions(1)
    task.scorer = lambda answer, one: {"value": 1.0, "tolerant": None, "compat": None, score: value}
    with pytest.raises(DataError, match="task questions: the scorer gave .* for sample q0, not a number in 0..1"):
        evaluate_task(onevision, task, task.made)


def test_a_macro_key_that_is_missing_is_named(onevision: LMM) -> None:
    task = Questions(1, macro="category")
    with pytest.raises(DataError, match="task questions: sample q0 has no 'category'"):
        evaluate_task(onevision, task, task.made)
