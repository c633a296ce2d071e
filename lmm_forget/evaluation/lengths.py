"""How many tokens samples take, counted before any work: who does not fit the context, whose answer cannot be said.

Counting decodes no picture: what pictures add depends on their sizes alone, and a family's processor can say it.
Samples that come close to the limit are encoded, so that a sample is refused exactly when encoding it would fail.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import DataError
from lmm_forget.evaluation.ahead import in_order
from lmm_forget.evaluation.ask import Chosen
from lmm_forget.evaluation.generate import prompts
from lmm_forget.models.chat import reserved_tokens
from lmm_forget.tasks.bad_samples import settle
from lmm_forget.tasks.base import Sample, Task

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from lmm_forget.models.family import Family
    from lmm_forget.models.loading import LMM

Sizes = tuple[tuple[int, int], ...]

CLOSE = 32
"""Tokens below the limit from which on a sample is encoded rather than counted."""
TRIED = 3
"""Picture sizes, for each number of pictures, on which the processor's own count must agree with what it makes."""


class Ruler:
    """Counts the tokens of prompts and answers; every text and every picture size once."""

    def __init__(self, family: Family, processor: ProcessorMixin) -> None:
        self.family, self.processor = family, processor
        self.reserved = reserved_tokens(processor)
        self._opening, self._end = family.answer_opening(processor), family.end_of_answer(processor)
        self._texts: dict[str, int] = {}
        self._prompts: dict[tuple[str, int, str | None], int] = {}
        self._pictures: dict[Sizes, int] = {}
        self._differences: defaultdict[int, list[int]] = defaultdict(list)
        """Number of pictures -> of sizes that were tried: what they add, less what the processor says they add.

        By number, since families treat several pictures otherwise than one (OneVision cuts only a lone one into tiles).
        """

    def text(self, text: str) -> int:
        """Tokens of a text by itself."""
        if text not in self._texts:
            ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            self._texts[text] = len(ids)
        return self._texts[text]

    def answer(self, answer: str) -> int:
        """Tokens of an answer as it is taught, its end token included."""
        return self.text(self._opening + answer + self._end)

    def prompt(self, question: str, sizes: Sizes, system: str | None = None) -> int:
        """Tokens of a question about pictures of these sizes. DataError where there is no place for `system`."""
        key = (question, len(sizes), system)
        if key not in self._prompts:
            self._prompts[key] = self._bare(*key)
        return self._prompts[key] + self._added(sizes)

    def suspicious(self, *texts: str) -> bool:
        """Whether a text holds a token that encoding refuses."""
        return any(token in text for text in texts if "<" in text or "[" in text for token in self.reserved)

    def _bare(self, question: str, n_images: int, system: str | None = None) -> int:
        prompt = self.family.prompt(self.processor, question, n_images, system)
        return len(self.processor.tokenizer(prompt, add_special_tokens=False)["input_ids"])

    def _added(self, sizes: Sizes) -> int:
        """What encoding adds to the tokens of the chat text: pictures in place of their marks, an opening token."""
        if sizes not in self._pictures:
            said, differences = self._said(sizes), self._differences[len(sizes)]
            if said is not None and len(differences) >= TRIED and len(set(differences)) == 1:
                self._pictures[sizes] = said + differences[0]
            else:
                self._pictures[sizes] = self._made(sizes)
                if said is not None:
                    differences.append(self._pictures[sizes] - said)
        return self._pictures[sizes]

    def _said(self, sizes: Sizes) -> int | None:
        """What the processor says of pictures; None where it cannot, or was wrong before."""
        if len(set(self._differences[len(sizes)])) > 1 or not sizes:
            return None
        count = getattr(self.processor, "_get_num_multimodal_tokens", None)
        try:
            found: Any = count(image_sizes=[(h, w) for w, h in sizes])["num_image_tokens"]  # type: ignore[misc]
        except Exception:  # a private method that some processors lack, or that refuses: encoding then counts
            return None
        return sum(found) - len(sizes)

    def _made(self, sizes: Sizes) -> int:
        """What encoding really adds; as much as the context if it refuses."""
        from PIL import Image

        pictures = [Image.new("RGB", size) for size in sizes]
        try:
            encoded = self.family.encode(self.processor, ["?"], [pictures])
        except DataError:
            return self.family.context
        return int(encoded.lengths[0]) - self._bare("?", len(sizes))


@dataclass
class Fit:
    """The samples that a model can take, why others cannot be used, and whose answers cannot be said in full."""

    samples: Sequence[Sample]
    bad: dict[str, str] = field(default_factory=dict)
    """Position -> "id: reason"."""
    long_answers: list[str] = field(default_factory=list)
    """"id (tokens)" of samples none of whose references (taught: whose taught answer) fits max_new_tokens."""


def glance(samples: Sequence[Sample], index: int) -> tuple[Sample, list[tuple[int, int]]]:
    """A sample and the sizes of its pictures, which are not decoded where that can be told without."""
    own = getattr(samples, "glance", None)
    if own is not None:
        return own(index)  # type: ignore[no-any-return]
    sample = samples[index]
    return sample, [picture.size for picture in sample.images]


def fit(lmm: LMM, task: Task, samples: Sequence[Sample], *, taught: bool, on_bad_sample: str = "fail") -> Fit:
    """Count every sample as it is taught, or as it is asked; a stream is left to be looked at when it is read.

    Raises DataError with the number of samples that cannot be used, and the first, unless `on_bad_sample` is
    "skip"; and if none is left.
    """
    found = Fit(samples)
    if in_order(samples):
        return found
    ruler = Ruler(lmm.family, lmm.processor)
    for place in range(len(samples)):
        sample, sizes = glance(samples, place)
        reason = _reason(ruler, lmm, task, samples, place, sample, tuple(sizes), taught)
        if reason is not None:
            found.bad[str(place)] = f"{sample.id}: {reason}"
        answers = (task.target(sample),) if taught else sample.answers
        least = min(ruler.text(answer) for answer in answers)
        if least > task.max_new_tokens:
            found.long_answers.append(f"{sample.id}, {least} tokens")
    if found.bad:
        used = "taught" if taught else "asked"
        settle(found.bad, len(samples), on_bad_sample, task=task.name, used=used)
        keep = [place for place in range(len(samples)) if str(place) not in found.bad]
        found.samples = Chosen(samples, keep, found.bad)
    return found


def _reason(
    ruler: Ruler,
    lmm: LMM,
    task: Task,
    samples: Sequence[Sample],
    place: int,
    sample: Sample,
    sizes: Sizes,
    taught: bool,
) -> str | None:
    """Why a sample cannot be encoded; None if it can."""
    question, answer = task.question(sample, training=taught), task.target(sample)
    room = ruler.answer(answer) if taught else task.max_new_tokens
    system = sample.system
    texts = (question, answer, system or "") if taught else (question, system or "")
    try:
        tokens = ruler.prompt(question, sizes, system) + room
        if tokens <= lmm.family.context - CLOSE and not ruler.suspicious(*texts):
            return None
        pictures = list(samples[place].images)
        if taught:
            lmm.family.encode(lmm.processor, [question], [pictures], [answer], [system])
        else:
            prompts(lmm.family, lmm.processor, [question], [pictures], task.max_new_tokens, [system])
    except DataError as error:
        return str(error).removeprefix("sample 0 of the batch: ")
    return None
