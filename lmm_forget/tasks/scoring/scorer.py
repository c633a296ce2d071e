"""What every scorer has in common: a strict score, a format-tolerant one, and one by a public rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

from lmm_forget.tasks.base import Sample
from lmm_forget.tasks.scoring.compat import rule
from lmm_forget.tasks.scoring.folding import fold
from lmm_forget.tasks.scoring.wrapping import excerpt


@dataclass(frozen=True)
class AnswerScorer(ABC):
    """A scorer gives `{"value", "tolerant", "compat"}`, each in 0..1.

    `strict` and `tolerant` get the answer, references, options and question folded (see `folding.fold`), so that no
    score depends on which of several look-alike characters was printed; `compat` gets them as they are.

    `value` is right by this project's definition, `tolerant` (never below it) also reads answers in another
    format (of a long one its two ends, see `wrapping.excerpt`),
    `compat` is what the public code named by the field `compat` ("paper.mmstar", "lmms_eval.mmstar":
    see `scoring.compat`) makes of the same answer, its defects included; None without a rule, or where the
    rule has no score. Raises ConfigError for a rule that does not exist.
    """

    compat: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        rule(self.compat)

    def __call__(self, answer: str, sample: Sample) -> dict[str, float | None]:
        """Score one answer."""
        said, asked = fold(answer), folded_sample(sample)
        value = self.strict(said, asked)
        tolerant = value if value >= 1 else max(value, self.tolerant(excerpt(said), asked))
        public = rule(self.compat)
        return {
            "value": value,
            "tolerant": tolerant,
            "compat": None if public is None else public(answer, sample),
        }

    @abstractmethod
    def strict(self, answer: str, sample: Sample) -> float:
        """The score by this project's definition. Raises DataError for a reference that cannot be one."""

    @abstractmethod
    def tolerant(self, answer: str, sample: Sample) -> float:
        """The score with other formats read too; asked only where the strict one is below 1."""


def folded_sample(sample: Sample) -> Sample:
    """The sample with its question, references and options folded; itself where they are ASCII."""
    if sample.question.isascii() and all(map(str.isascii, (*sample.answers, *(sample.choices or ())))):
        return sample
    return replace(
        sample,
        question=fold(sample.question),
        answers=tuple(map(fold, sample.answers)),
        choices=None if sample.choices is None else tuple(map(fold, sample.choices)),
    )
