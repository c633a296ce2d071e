"""What every scorer has in common: a strict score, a format-tolerant one, and one by a public rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

from lmm_forget.tasks.scoring.compat import get_compat_rule
from lmm_forget.tasks.scoring.markup import truncate_middle
from lmm_forget.tasks.scoring.unicode_folding import fold_unicode
from lmm_forget.tasks.task import Sample


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
        get_compat_rule(self.compat)

    def __call__(self, answer: str, sample: Sample) -> dict[str, float | None]:
        """Score one answer."""
        folded_answer, folded = fold_unicode(answer), fold_sample(sample)
        value = self.score_strict(folded_answer, folded)
        tolerant = value if value >= 1 else max(value, self.score_tolerant(truncate_middle(folded_answer), folded))
        compat_rule = get_compat_rule(self.compat)
        return {
            "value": value,
            "tolerant": tolerant,
            "compat": None if compat_rule is None else compat_rule(answer, sample),
        }

    @abstractmethod
    def score_strict(self, answer: str, sample: Sample) -> float:
        """The score by this project's definition. Raises DataError for a reference that cannot be one."""

    @abstractmethod
    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """The score with other formats read too; asked only where the strict one is below 1."""


def fold_sample(sample: Sample) -> Sample:
    """The sample with its question, references and options folded; itself where they are ASCII."""
    if sample.question.isascii() and all(map(str.isascii, (*sample.answers, *(sample.choices or ())))):
        return sample
    return replace(
        sample,
        question=fold_unicode(sample.question),
        answers=tuple(map(fold_unicode, sample.answers)),
        choices=None if sample.choices is None else tuple(map(fold_unicode, sample.choices)),
    )
