"""The interface of a task: a data set, its prompts and its scorer."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from lmm_forget.errors import ConfigError

SPLITS = ("train", "validation", "test")
TRAIN_PROMPT_STYLES = ("bare", "as_evaluated")


@dataclass(frozen=True)
class Sample:
    """One question about zero or more images.

    `id` is unique within its task and split. `image_id` names the image: samples that share it form one cluster of
    the bootstrap. `answers` are the accepted references; training uses the first one. `choices` are the texts of the
    options A, B, …. `meta` holds further values of the row. `system` is the system prompt (None: the model's chat
    template decides).
    """

    id: str
    image_id: str
    images: tuple[Image.Image, ...]
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None


SplitOverlap = dict[tuple[str, str], list[tuple[str, str]]]
"""(first split, second split) -> for every image that is in both, the id of a sample of each that shows it."""
Scorer = Callable[[str, Sample], dict[str, float | None]]


class Task(ABC):
    """A dataset with its question format and its scorer.

    Subclasses implement `load_samples` and `fingerprint_split`. `name` is the task's name in records, `role` is
    `target` (has a train split), `held_out` or `captions`, `max_new_tokens` bounds an answer, `scorer` maps
    (answer, sample) to `{"value", "tolerant", "compat"}` in 0..1 (None where a score is not defined). `macro` names the
    key of `Sample.meta` by which samples are grouped: the score is then the mean of the groups' means (None: the mean
    over samples).

    The prompt is `eval_prefix + question + eval_suffix` in evaluation. In training it is `train_prefix + question +
    train_suffix` (`train_prompt="bare"`, as in the paper) or the same as in evaluation (`"as_evaluated"`).
    """

    def __init__(
        self,
        *,
        name: str,
        role: str,
        max_new_tokens: int,
        scorer: Scorer,
        train_suffix: str = "",
        eval_suffix: str = "",
        train_prefix: str = "",
        eval_prefix: str = "",
        train_prompt: str = "bare",
        macro: str | None = None,
    ) -> None:
        if train_prompt not in TRAIN_PROMPT_STYLES:
            raise ConfigError(
                f"task {name}: train_prompt={train_prompt} is not known; choose one of: "
                f"{', '.join(TRAIN_PROMPT_STYLES)}"
            )
        if not callable(scorer):
            raise ConfigError(f"task {name}: scorer={scorer!r} is not of the form {{_target_: …}}")
        self.name = name
        self.role = role
        self.max_new_tokens = max_new_tokens
        self.scorer = scorer
        self.train_suffix = train_suffix
        self.eval_suffix = eval_suffix
        self.train_prefix = train_prefix
        self.eval_prefix = eval_prefix
        self.train_prompt = train_prompt
        self.macro = macro

    @abstractmethod
    def load_samples(self, split: str) -> Sequence[Sample]:
        """The samples of a split, read by index when they are needed. Raises DataError if there is no such split."""

    @abstractmethod
    def fingerprint_split(self, split: str) -> str:
        """Hex digest of everything that determines this split's samples: content or generator version, never a path."""

    def format_question(self, sample: Sample, *, for_training: bool) -> str:
        """The text of the user turn: the question with this task's prefix and suffix for training or evaluation."""
        if for_training and self.train_prompt == "bare":
            return self.train_prefix + sample.question + self.train_suffix
        return self.eval_prefix + sample.question + self.eval_suffix

    def format_display_prompt(self, sample: Sample, *, for_training: bool) -> str:
        """The prompt for people to read: the system prompt, if there is one, above the text of the user turn."""
        question = self.format_question(sample, for_training=for_training)
        return question if sample.system is None else f"[system] {sample.system}\n{question}"

    def get_target_answer(self, sample: Sample) -> str:
        """The answer that training uses as the label."""
        return sample.answers[0]

    def score_answer(self, answer: str, sample: Sample) -> dict[str, float | None]:
        """Score one answer; see `scorer` in the class docstring."""
        return self.scorer(answer, sample)

    def validate_split(self, split: str, on_bad_sample: str = "fail") -> Sequence[Sample]:
        """Read the whole split before work starts and return its usable samples.

        `on_bad_sample="fail"` raises DataError with the number of bad samples and the first ids; `"skip"` leaves
        them out. Tasks that cannot have bad samples return `load_samples(split)`.
        """
        return self.load_samples(split)

    def hash_data(self, splits: Sequence[str]) -> str | None:
        """Digest of the local data of these splits, computed as cheaply as possible; None if there is none.

        It changes whenever changed data changes `fingerprint_split` of one of them. Raises DataError.
        """
        return hash_json_parts([self.fingerprint_split(split) for split in splits])

    def load_readable_samples(self, split: str) -> Sequence[Sample]:
        """The split without the samples whose text cannot be read; `skipped` of the returned sequence lists those.

        Nothing else is checked. `load_samples` refuses such a split as a whole. Raises DataError if there is no such
        split.
        """
        return self.load_samples(split)

    def find_split_overlap(self) -> SplitOverlap:
        """Images that occur in two of the splits validated so far; images are equal if their pixels are.

        Empty for tasks whose splits cannot overlap.
        """
        return {}

    def get_provenance(self) -> dict[str, str]:
        """Source of every split read so far (a hub revision or "local copy"); empty for synthetic data."""
        return {}


def hash_json_parts(*parts: Any) -> str:
    """Stable hex digest of JSON-serialisable parts, for fingerprints."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
