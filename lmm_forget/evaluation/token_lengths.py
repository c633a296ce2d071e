"""Count the tokens of every sample before work starts: find those that exceed the context or `max_new_tokens`.

Counting decodes no image: what images add depends on their sizes alone, and a family's processor knows how much.
Samples that come close to the limit are encoded, so that a sample is refused exactly when encoding it would fail.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from transformers import ProcessorMixin

from lmm_forget.errors import DataError
from lmm_forget.evaluation.question_encoding import encode_prompts
from lmm_forget.models.chat import list_reserved_tokens
from lmm_forget.models.family import Family
from lmm_forget.models.loading import LMM
from lmm_forget.tasks.bad_samples import apply_bad_sample_policy
from lmm_forget.tasks.sample_set import SampleSet, SampleSubset
from lmm_forget.tasks.task import Sample, Task

ImageSizes = tuple[tuple[int, int], ...]

CONTEXT_SAFETY_TOKENS = 32
"""Tokens below the limit from which on a sample is encoded rather than counted."""
MIN_VERIFIED_SIZES = 3
"""Image sizes, for each number of images, on which the processor's own count must agree with what encoding adds."""


class TokenCounter:
    """Counts the tokens of prompts and answers; every text and every image size once."""

    def __init__(self, family: Family, processor: ProcessorMixin) -> None:
        self.family, self.processor = family, processor
        self.reserved_tokens = list_reserved_tokens(processor)
        self._answer_opening, self._answer_end = (
            family.get_answer_prefix(processor),
            family.get_end_of_answer_token(processor),
        )
        self._text_counts: dict[str, int] = {}
        self._prompt_counts: dict[tuple[str, int, str | None], int] = {}
        self._image_counts: dict[ImageSizes, int] = {}
        self._count_differences: defaultdict[int, list[int]] = defaultdict(list)
        """Number of images -> for every size that was tried: the tokens it adds, less those that the processor claims.

        By number, since families treat several images otherwise than one (OneVision cuts only a lone one into tiles).
        """

    def count_text_tokens(self, text: str) -> int:
        """Tokens of a text by itself."""
        if text not in self._text_counts:
            ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            self._text_counts[text] = len(ids)
        return self._text_counts[text]

    def count_answer_tokens(self, answer: str) -> int:
        """Tokens of an answer as training has it, its end token included."""
        return self.count_text_tokens(self._answer_opening + answer + self._answer_end)

    def count_prompt_tokens(self, question: str, image_sizes: ImageSizes, system_prompt: str | None = None) -> int:
        """Tokens of a question about images of these sizes. DataError if the chat template takes no `system_prompt`."""
        key = (question, len(image_sizes), system_prompt)
        if key not in self._prompt_counts:
            self._prompt_counts[key] = self._count_chat_tokens(*key)
        return self._prompt_counts[key] + self._count_image_tokens(image_sizes)

    def has_reserved_token(self, *texts: str) -> bool:
        """Whether a text holds a token that encoding refuses."""
        return any(token in text for text in texts if "<" in text or "[" in text for token in self.reserved_tokens)

    def _count_chat_tokens(self, question: str, num_images: int, system_prompt: str | None = None) -> int:
        prompt = self.family.render_prompt(self.processor, question, num_images, system_prompt)
        return len(self.processor.tokenizer(prompt, add_special_tokens=False)["input_ids"])

    def _count_image_tokens(self, image_sizes: ImageSizes) -> int:
        """Tokens that encoding adds to those of the chat text: images in place of their marks, an opening token."""
        if image_sizes not in self._image_counts:
            claimed, differences = (
                self._get_claimed_image_tokens(image_sizes),
                self._count_differences[len(image_sizes)],
            )
            if claimed is not None and len(differences) >= MIN_VERIFIED_SIZES and len(set(differences)) == 1:
                self._image_counts[image_sizes] = claimed + differences[0]
            else:
                self._image_counts[image_sizes] = self._measure_image_tokens(image_sizes)
                if claimed is not None:
                    differences.append(self._image_counts[image_sizes] - claimed)
        return self._image_counts[image_sizes]

    def _get_claimed_image_tokens(self, image_sizes: ImageSizes) -> int | None:
        """The processor's own count for images; None where it has none, or was wrong before."""
        if len(set(self._count_differences[len(image_sizes)])) > 1 or not image_sizes:
            return None
        count_tokens = getattr(self.processor, "_get_num_multimodal_tokens", None)
        try:
            token_counts: Any = count_tokens(image_sizes=[(h, w) for w, h in image_sizes])["num_image_tokens"]  # type: ignore[misc]
        except Exception:  # a private method that some processors lack, or that refuses: encoding then counts
            return None
        return sum(token_counts) - len(image_sizes)

    def _measure_image_tokens(self, image_sizes: ImageSizes) -> int:
        """Tokens that encoding adds, by trying it; as many as the context where it refuses."""
        images = [Image.new("RGB", size) for size in image_sizes]
        try:
            encoded = self.family.encode_batch(self.processor, ["?"], [images])
        except DataError:
            return self.family.context_length
        return int(encoded.lengths[0]) - self._count_chat_tokens("?", len(image_sizes))


@dataclass
class LengthReport:
    """The samples that a model can take, why others cannot be used, and which answers are too long to be generated."""

    samples: SampleSet
    unusable_samples: dict[str, str] = field(default_factory=dict)
    """Position -> "id: reason"."""
    long_answers: list[str] = field(default_factory=list)
    """"id, N tokens" of samples none of whose references (training: whose target answer) fits max_new_tokens."""


def check_lengths(
    lmm: LMM, task: Task, samples: SampleSet, *, is_training: bool, on_bad_sample: str = "fail"
) -> LengthReport:
    """Count every sample as it is trained on, or as it is evaluated; sequential sets are checked when they are read.

    Raises DataError with the number of samples that cannot be used, and the first, unless `on_bad_sample` is
    "skip"; and if none is left.
    """
    report = LengthReport(samples)
    if samples.is_sequential:
        return report
    token_counter = TokenCounter(lmm.family, lmm.processor)
    for position in range(len(samples)):
        sample, image_sizes = samples.peek_sample(position)
        reason = _find_length_problem(
            token_counter, lmm, task, samples, position, sample, tuple(image_sizes), is_training
        )
        if reason is not None:
            report.unusable_samples[str(position)] = f"{sample.id}: {reason}"
        answers = (task.get_target_answer(sample),) if is_training else sample.answers
        fewest_tokens = min(token_counter.count_text_tokens(answer) for answer in answers)
        if fewest_tokens > task.max_new_tokens:
            report.long_answers.append(f"{sample.id}, {fewest_tokens} tokens")
    if report.unusable_samples:
        usage = "trained" if is_training else "evaluated"
        apply_bad_sample_policy(
            report.unusable_samples, len(samples), on_bad_sample, task_name=task.name, participle=usage
        )
        usable_positions = [i for i in range(len(samples)) if str(i) not in report.unusable_samples]
        report.samples = SampleSubset(samples, usable_positions, report.unusable_samples)
    return report


def _find_length_problem(
    token_counter: TokenCounter,
    lmm: LMM,
    task: Task,
    samples: SampleSet,
    position: int,
    sample: Sample,
    image_sizes: ImageSizes,
    is_training: bool,
) -> str | None:
    """Why a sample cannot be encoded; None if it can."""
    question, answer = task.format_question(sample, for_training=is_training), task.get_target_answer(sample)
    answer_tokens = token_counter.count_answer_tokens(answer) if is_training else task.max_new_tokens
    system_prompt = sample.system
    texts = (question, answer, system_prompt or "") if is_training else (question, system_prompt or "")
    try:
        tokens = token_counter.count_prompt_tokens(question, image_sizes, system_prompt) + answer_tokens
        if tokens <= lmm.family.context_length - CONTEXT_SAFETY_TOKENS and not token_counter.has_reserved_token(*texts):
            return None
        images = list(samples.read_sample(position).images)
        if is_training:
            lmm.family.encode_batch(lmm.processor, [question], [images], [answer], [system_prompt])
        else:
            encode_prompts(lmm.family, lmm.processor, [question], [images], task.max_new_tokens, [system_prompt])
    except DataError as error:
        return str(error).removeprefix("sample 0 of the batch: ")
    return None
