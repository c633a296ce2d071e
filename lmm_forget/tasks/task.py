"""What a task is: a dataset, how its questions are put, and how answers are scored."""

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

    `id` is unique within its task and split; `image_id` names the image (samples that share it form one
    cluster for the bootstrap); `answers` are the accepted references, the first one is what training teaches;
    `system` is the system prompt (None: whatever the model's chat template says by itself).
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
"""(split, split) -> for every picture that is in both, the ids of a sample of each that shows it."""
Scorer = Callable[[str, Sample], dict[str, float | None]]


class Task(ABC):
    """A dataset with its question format and its scorer.

    Subclasses supply `samples(split)`. `name` is what records call the task, `role` is `target` (has a train
    split), `held_out` or `captions`, `max_new_tokens` bounds an answer, `scorer` maps (answer, sample) to
    `{"value", "tolerant", "compat"}` in 0..1 (None where a score is not defined). `macro` names the key of
    `Sample.meta` whose groups are averaged last (None: plain mean over samples).

    A question is put as `eval_prefix + question + eval_suffix`. Training puts it as `train_prefix + question +
    train_suffix` (`train_prompt="bare"`, the paper's way) or as evaluation does (`"as_evaluated"`).
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
        """Samples of a split, produced lazily by index where that is costly. DataError if there is no such split."""

    @abstractmethod
    def fingerprint_split(self, split: str) -> str:
        """Hex digest of everything that decides this split's samples (content or generator version, never a path)."""

    def format_question(self, sample: Sample, *, for_training: bool) -> str:
        """The user turn's text: the question plus this task's instruction for training or evaluation."""
        if for_training and self.train_prompt == "bare":
            return self.train_prefix + sample.question + self.train_suffix
        return self.eval_prefix + sample.question + self.eval_suffix

    def format_display_prompt(self, sample: Sample, *, for_training: bool) -> str:
        """A prompt as people are shown it: the system prompt, where there is one, above the user turn's text."""
        question = self.format_question(sample, for_training=for_training)
        return question if sample.system is None else f"[system] {sample.system}\n{question}"

    def get_target_answer(self, sample: Sample) -> str:
        """The text that training teaches as the answer."""
        return sample.answers[0]

    def score_answer(self, answer: str, sample: Sample) -> dict[str, float | None]:
        """Scores of one answer; see the class docstring."""
        return self.scorer(answer, sample)

    def validate_split(self, split: str, on_bad_sample: str = "fail") -> Sequence[Sample]:
        """Read the whole split before work starts; returns the usable samples.

        `on_bad_sample="fail"` raises DataError with the count of bad samples and the first ids; `"skip"` leaves
        them out.
        Tasks that cannot have bad samples return `samples(split)` unchanged.
        """
        return self.load_samples(split)

    def hash_data(self, splits: Sequence[str]) -> str | None:
        """Digest of the local data that these splits are made from, as cheap as it can be had; None without any.

        It changes whenever `fingerprint` of one of them does because data changed. Raises DataError.
        """
        return hash_json_parts([self.fingerprint_split(split) for split in splits])

    def load_readable_samples(self, split: str) -> Sequence[Sample]:
        """The split without the samples whose text cannot be read; `skipped` of what is returned names these.

        Nothing else is checked; `samples` refuses such a split as a whole. DataError if there is none.
        """
        return self.load_samples(split)

    def find_split_overlap(self) -> SplitOverlap:
        """Pictures that two of the splits checked so far both show, known by their pixels; of splits that are given.

        Empty for tasks that cannot have any.
        """
        return {}

    def get_provenance(self) -> dict[str, str]:
        """Where the splits read so far came from, by split (a hub revision, "local copy"); empty for drawn data."""
        return {}


def hash_json_parts(*parts: Any) -> str:
    """Stable hex digest of JSON-serialisable parts, for fingerprints."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
