"""System prompts: where a chat template takes one it is what the model reads, elsewhere the sample is refused by id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from lmm_forget.data.token_counter import make_token_counter
from lmm_forget.errors import DataError
from lmm_forget.evaluation.generation import generate_answers
from lmm_forget.evaluation.prefetch import ReadRequest
from lmm_forget.evaluation.question_encoding import QuestionIndexer
from lmm_forget.evaluation.task_evaluation import encode_question_batch, evaluate_task
from lmm_forget.evaluation.token_lengths import TokenCounter, check_lengths
from lmm_forget.models.loading import LMM
from lmm_forget.probes.forward_passes import PromptSet, run_forced_pass
from lmm_forget.tasks.scoring.exact import ExactMatchScorer
from lmm_forget.tasks.task import Sample, Task, hash_json_parts
from lmm_forget.training.micro_batch_search import select_longest_items
from lmm_forget.training.micro_batches import MicroBatchDataset, MicroBatchIndices
from lmm_forget.training.train_set import TrainSet
from tests.models.subjects import SUBJECTS, subject
from tests.models.tiny import (
    LLAMA3_TEMPLATE,
    ONEVISION_TEMPLATE,
    QWEN_TEMPLATE,
    picture,
    tiny_lmm,
    tiny_processor,
)

KIND = "Speak as a pirate."
# What LLaVA-NeXT's Mistral checkpoints do with a system turn, and three ways of other checkpoints.
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' }}{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ ' [/INST]' }}{% else %}"
    "{{ message['content'][0]['text'] }}{% endif %}{% endfor %}"
)
USER_ONLY = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}"
    "{% endfor %}{% endif %}{% endfor %} ASSISTANT:"
)
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + USER_ONLY
TEXT_ONLY = "{% if messages[0]['role'] == 'system' %}SYSTEM: {{ messages[0]['content'] }}\n{% endif %}" + USER_ONLY
NO_TURNS_BUT_PAIRS = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + USER_ONLY
)


class Questions(Task):
    """A few questions about one picture each."""

    def __init__(self, *samples: Sample) -> None:
        super().__init__(
            name="mine", role="target", max_new_tokens=2, scorer=ExactMatchScorer(), eval_suffix=" Say it."
        )
        self.given = list(samples)

    def load_samples(self, split: str) -> Sequence[Sample]:
        return self.given

    def fingerprint_split(self, split: str) -> str:
        return hash_json_parts(len(self.given))


def sample(name: str, system: str | None = None, **changes: Any) -> Sample:
    return replace(Sample(name, name, (picture(),), "What is it?", ("a cat",), None, {}, system), **changes)


@pytest.fixture(scope="module")
def onevision() -> LMM:
    return tiny_lmm("llava_onevision")


@pytest.fixture
def bare(onevision: LMM) -> LMM:
    """The same model with a chat template that knows no system role."""
    processor = tiny_processor("llava_onevision")
    processor.chat_template = USER_ONLY
    return replace(onevision, processor=processor)


def prompt(template: str, system: str | None, family: str = "llava_onevision") -> str:
    lmm = tiny_lmm(family)
    lmm.processor.chat_template = template
    return lmm.family.render_prompt(lmm.processor, "What is it?", 1, system)


@pytest.mark.parametrize(
    ("family", "template", "expected"),
    [
        (
            "qwen2_5_vl",
            QWEN_TEMPLATE,
            f"<|im_start|>system\n{KIND}<|im_end|>\n<|im_start|>user\n<|vision_start|>",
        ),
        (
            "llava_onevision",
            ONEVISION_TEMPLATE,
            f"<|im_start|>system\n{KIND}<|im_end|>\n<|im_start|>user <image>\n",
        ),
        ("llava_next", LLAMA3_TEMPLATE, f"<|start_header_id|>system<|end_header_id|>\n\n\n{KIND}<|eot_id|>"),
        ("llava_next", MISTRAL, f"<<SYS>>\n{KIND}\n<</SYS>>\n\n[INST] <image>\nWhat is it? [/INST]"),
        ("llava_next", TEXT_ONLY, f"SYSTEM: {KIND}\nUSER: <image>What is it? ASSISTANT:"),
    ],
    ids=["qwen", "onevision", "llama3", "mistral", "text"],
)
def test_a_template_that_takes_a_system_prompt_writes_it_in_front(family: str, template: str, expected: str) -> None:
    written = prompt(template, KIND, family)
    assert written.startswith(expected.replace("user <image>", "user\n<image>"))
    assert written.count(KIND) == 1 and "helpful" not in written
    assert KIND not in prompt(template, None, family)


def test_without_a_system_prompt_the_templates_own_stays() -> None:
    assert prompt(QWEN_TEMPLATE, None, "qwen2_5_vl").startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    )


@pytest.mark.parametrize("template", [USER_ONLY, REFUSES, NO_TURNS_BUT_PAIRS], ids=["user only", "raises", "pairs"])
def test_a_template_without_a_place_for_it_is_no_excuse_to_drop_it(template: str) -> None:
    assert "What is it?" in prompt(template, None)
    with pytest.raises(DataError, match="it has a system prompt, but this model's chat template takes none"):
        prompt(template, KIND)


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_model_is_taught_and_asked_with_it_or_refuses_it(name: str) -> None:
    """Packaged families, and models without a family of their own: the same tokens in training and evaluation."""
    lmm = subject(name)
    task = Questions(sample("with", KIND), sample("without"))
    try:
        asked = encode_question_batch(lmm.family, lmm.processor, task, task.given).inputs["input_ids"]
    except DataError as error:
        assert "task mine: sample with: it has a system prompt" in str(error)
        return
    taught = MicroBatchDataset(lmm, TrainSet(task, task.given), [MicroBatchIndices(0, (0, 1), True)])[0]
    assert not isinstance(taught, Exception)
    for ids in (asked, taught.inputs["input_ids"]):
        first, second = lmm.processor.tokenizer.batch_decode(ids)
        assert KIND in first and KIND not in second
    ruler = TokenCounter(lmm.family, lmm.processor)
    size = ((56, 56),)
    made = lmm.family.encode_batch(lmm.processor, ["?"], [[picture()]], systems=[KIND]).lengths[0]
    assert ruler.count_prompt_tokens("?", size, KIND) == made != ruler.count_prompt_tokens("?", size)


def test_a_system_prompt_is_part_of_the_questions_key_and_of_what_is_shown(onevision: LMM) -> None:
    task = Questions(sample("a"), sample("b", KIND), sample("c", "Speak as a poet."))
    look = QuestionIndexer(onevision.family, onevision.processor, task, task.given)
    keys = [found[1] for found in look(ReadRequest((0, 1, 2)))]
    assert len(set(keys)) == 3
    answers = evaluate_task(onevision, task, task.given)
    assert [answer.question for answer in answers] == [
        "What is it? Say it.",
        f"[system] {KIND}\nWhat is it? Say it.",
        "[system] Speak as a poet.\nWhat is it? Say it.",
    ]


def test_probes_and_the_longest_samples_have_it(onevision: LMM, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Questions(sample("a", KIND))
    assert select_longest_items(onevision, [TrainSet(task, task.given)], 1)[0].system == KIND
    seen: list[Any] = []
    encode = type(onevision.family).encode_batch

    def watched(self: Any, *given: Any, **named: Any) -> Any:
        made = encode(self, *given, **named)
        seen.append(onevision.processor.tokenizer.decode(made.tensors["input_ids"][0]))
        return made

    monkeypatch.setattr(type(onevision.family), "encode_batch", watched)
    generate_answers(onevision, ["?"], [[picture()]], 1, system_prompts=[KIND])
    from lmm_forget.probes.decoder_blocks import find_decoder_blocks

    run_forced_pass(
        onevision,
        find_decoder_blocks(onevision),
        PromptSet(task, {}, task.given, 1, ""),
        [(0, task.given[0])],
        ["x"],
        False,
    )
    assert len(seen) == 2 and all(KIND in text for text in seen)


@pytest.mark.parametrize("taught", [True, False])
def test_where_there_is_no_place_for_it_the_policy_decides(taught: bool, bare: LMM) -> None:
    task = Questions(sample("a"), sample("b", KIND), sample("c"))
    used = "trained" if taught else "evaluated"
    with pytest.raises(DataError) as caught:
        check_lengths(bare, task, task.given, is_training=taught)
    said = str(caught.value)
    assert said.startswith(f"task mine: 1 of 3 samples cannot be {used} (first: b: it has a system prompt, but ")
    assert said.endswith("data.on_bad_sample=skip leaves them out") and "\n" not in said
    left = check_lengths(bare, task, task.given, is_training=taught, on_bad_sample="skip")
    assert [one.id for one in left.samples] == ["a", "c"] and list(left.unusable_samples) == ["1"]


def test_a_system_prompt_that_is_too_long_or_holds_a_reserved_token_is_a_bad_sample(onevision: LMM) -> None:
    for system, message in (
        ("word " * 400, "tokens"),
        ("Be <|im_end|> kind", r"system prompt contains .* <\|im_end\|>"),
    ):
        task = Questions(sample("a"), sample("b", system))
        for taught in (True, False):
            with pytest.raises(DataError, match=rf"1 of 2 samples cannot be .* \(first: b: .*{message}"):
                check_lengths(onevision, task, task.given, is_training=taught)


def test_data_check_counts_its_tokens() -> None:
    measure, _ = make_token_counter({"path": "package:tiny_onevision"})
    counted: Callable[..., int] = measure
    assert counted("What is it?", [picture()], "a cat", KIND) > counted("What is it?", [picture()], "a cat", None)
