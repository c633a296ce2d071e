"""Tokens counted without decoding: who does not fit a model's context, and whose answer cannot be said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmm_forget.errors import DataError
from lmm_forget.evaluation.token_lengths import TokenCounter, check_lengths
from lmm_forget.models.loading import LMM
from lmm_forget.tasks.sample_set import SampleSet, as_sample_set
from lmm_forget.tasks.task import Sample
from tests.evaluation.questions import SIZES, Questions, sample
from tests.models.subjects import SUBJECTS, subject
from tests.models.tiny import picture, tiny_lmm

ODD = ((56, 56), (300, 40), (33, 90), (64, 64), (57, 112), (90, 33))


@pytest.fixture(scope="module")
def onevision() -> LMM:
    return tiny_lmm("llava_onevision")


@pytest.mark.parametrize("name", SUBJECTS)
def test_counts_are_those_of_encoding(name: str) -> None:
    lmm = subject(name)
    for counts in (True, False):
        ruler = TokenCounter(lmm.family, lmm.processor)
        if not counts:
            ruler._get_claimed_image_tokens = lambda sizes: None  # type: ignore[method-assign]  # a processor that cannot say
        for i, sizes in enumerate([*((size,) for size in ODD), (), ODD[:2], ODD[1:3], ODD[:3]]):
            question, answer = "How many " + "red " * i + "things?\nA. one", "a" * (i + 1)
            images = [picture(*size) for size in sizes]
            made = lmm.family.encode_batch(lmm.processor, [question], [images], [answer])
            assert (
                ruler.count_prompt_tokens(question, tuple(p.size for p in images)) + ruler.count_answer_tokens(answer)
                == made.lengths[0]
            )


def test_a_processor_that_counts_wrongly_is_not_believed(onevision: LMM) -> None:
    ruler = TokenCounter(onevision.family, onevision.processor)
    ruler._get_claimed_image_tokens = lambda sizes: sizes[0][0] if len(set(ruler._count_differences[1])) < 2 else None  # type: ignore[method-assign]
    for size in ODD:
        made = onevision.family.encode_batch(onevision.processor, ["?"], [[picture(*size)]]).lengths[0]
        assert ruler.count_prompt_tokens("?", (size,)) == made


class Opened(SampleSet):
    """Samples that can be glanced at, and remember which were decoded."""

    def __init__(self, made: list[Sample]) -> None:
        self.made, self.decoded = made, list[int]()

    def __len__(self) -> int:
        return len(self.made)

    def read_sample(self, index: int) -> Sample:
        self.decoded.append(index)
        return self.made[index]

    def peek_sample(self, index: int) -> tuple[Sample, list[tuple[int, int]]]:
        return self.made[index], [image.size for image in self.made[index].images]


def long_by(lmm: LMM, task: Questions, room: int, i: int) -> Sample:
    """A sample whose prompt leaves exactly `room` tokens of the context."""
    ruler = TokenCounter(lmm.family, lmm.processor)
    for n in range(700):
        made = sample(i, "x" * n)
        length = ruler.count_prompt_tokens(task.format_question(made, for_training=False), (SIZES[i % len(SIZES)],))
        if length + room == lmm.family.context_length:
            return made
    raise AssertionError("no such sample")


def test_a_sample_is_refused_exactly_when_it_does_not_fit(onevision: LMM) -> None:
    task = Questions(6)
    samples = Opened(task.made)
    assert check_lengths(onevision, task, samples, is_training=False).samples is samples
    assert samples.decoded == [], "far from the limit nothing is decoded"
    task.made[2] = long_by(onevision, task, task.max_new_tokens, 2)
    assert check_lengths(onevision, task, samples, is_training=False).unusable_samples == {}
    assert samples.decoded == [2]
    task.made[4] = long_by(onevision, task, task.max_new_tokens - 1, 4)
    with pytest.raises(
        DataError, match=r"^task questions: 1 of 6 samples cannot be evaluated \(first: q4: 507 prompt tok"
    ):
        check_lengths(onevision, task, samples, is_training=False)
    kept = check_lengths(onevision, task, samples, is_training=False, on_bad_sample="skip").samples
    assert [one.id for one in kept] == ["q0", "q1", "q2", "q3", "q5"]
    assert list(kept.skipped) == ["4"]


def test_pictures_that_a_template_merges_are_found_before_anything_is_asked() -> None:
    """Also when the sizes of single pictures are counted without encoding by then."""
    lmm, task = tiny_lmm("qwen2_5_vl"), Questions(8)
    lmm.processor.chat_template = lmm.processor.chat_template.replace("<|vision_start|>", "")
    lmm.processor.chat_template = lmm.processor.chat_template.replace("<|vision_end|>", "")
    task.made[5] = replace(task.made[5], images=(picture(), picture(112, 56, 1)))
    with pytest.raises(
        DataError, match=r"1 of 8 samples cannot be evaluated \(first: q5: its 2 images stand side by side"
    ):
        check_lengths(lmm, task, as_sample_set(task.made), is_training=False)
    for taught in (False, True):
        kept = check_lengths(lmm, task, as_sample_set(task.made), is_training=taught, on_bad_sample="skip").samples
        assert [one.id for one in kept] == [f"q{i}" for i in range(8) if i != 5]


def test_what_is_taught_has_to_fit_with_its_answer(onevision: LMM) -> None:
    task = Questions(5)
    ending = TokenCounter(onevision.family, onevision.processor).count_answer_tokens(task.made[0].answers[0])
    task.train_suffix = task.eval_suffix
    task.made[1] = long_by(onevision, task, ending, 1)
    assert check_lengths(onevision, task, as_sample_set(task.made), is_training=True).unusable_samples == {}
    task.made[3] = long_by(onevision, task, ending - 1, 3)
    with pytest.raises(DataError, match=r"1 of 5 samples cannot be trained \(first: q3: prompt and answer have 513"):
        check_lengths(onevision, task, as_sample_set(task.made), is_training=True)
    task.made[0] = sample(0, "What does <image> say?")
    found = check_lengths(onevision, task, as_sample_set(task.made), is_training=True, on_bad_sample="skip")
    assert [one.id for one in found.samples] == ["q1", "q2", "q4"]
    assert "reserved token <image>" in found.unusable_samples["0"]
    task.made = [sample(0, "long " * 200)] * 2
    with pytest.raises(DataError, match="2 of 2 samples cannot be trained .*: none is left"):
        check_lengths(onevision, task, as_sample_set(task.made), is_training=True, on_bad_sample="skip")


def test_answers_that_cannot_be_said_are_found(onevision: LMM) -> None:
    task = Questions(4, max_new_tokens=5)  # the tokenizer of these models has a token a letter
    assert check_lengths(onevision, task, as_sample_set(task.made), is_training=False).long_answers == [], (
        "'bird' can be said"
    )
    taught = check_lengths(onevision, task, as_sample_set(task.made), is_training=True).long_answers
    assert taught == [f"q{i}, 6 tokens" for i in range(4)], "'a bird' is taught"
    task.max_new_tokens = 3
    assert check_lengths(onevision, task, as_sample_set(task.made), is_training=False).long_answers[0] == "q0, 4 tokens"
