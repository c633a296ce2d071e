"""The interface of scorers: a strict score, a format-tolerant score, and the score of a public rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

from lmm_forget.tasks.scoring.compat import get_compat_rule
from lmm_forget.tasks.scoring.markup import truncate_middle
from lmm_forget.tasks.scoring.unicode_folding import fold_unicode
from lmm_forget.tasks.task import Sample


@dataclass(frozen=True)
class AnswerScorer(ABC):
    """Scores an answer: calling it returns `{"value", "tolerant", "compat"}`, each in 0..1.

    - `value` is the strict score by this project's definition.
    - `tolerant`, never below `value`, also accepts answers in other formats. Of a long answer it reads both ends (see
      `truncate_middle`).
    - `compat` is the score of public code for the same answer, defects included. The field `compat` names its rule,
      such as "paper.mmstar" or "lmms_eval.mmstar" (see `scoring.compat`). None without a rule, or if the rule defines
      no score for the sample.

    `score_strict` and `score_tolerant` get answer, references, options and question after `fold_unicode`, so that no
    score depends on which of several look-alike characters was printed; the compat rule gets the raw texts. Raises
    ConfigError for a rule that does not exist.
    """

    compat: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        get_compat_rule(self.compat)

    def __call__(self, answer: str, sample: Sample) -> dict[str, float | None]:
        """Score one answer; see the class docstring. Raises DataError for a reference that is not valid here."""
        folded_answer, folded = fold_unicode(answer), fold_sample_texts(sample)
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
        """The score by this project's definition. Raises DataError for a reference that is not valid here."""

    @abstractmethod
    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """The score if other formats are accepted too; called only if the strict score is below 1."""


def fold_sample_texts(sample: Sample) -> Sample:
    """Apply `fold_unicode` to question, references and options; returns the same object if all are ASCII."""
    if sample.question.isascii() and all(map(str.isascii, (*sample.answers, *(sample.choices or ())))):
        return sample
    return replace(
        sample,
        question=fold_unicode(sample.question),
        answers=tuple(map(fold_unicode, sample.answers)),
        choices=None if sample.choices is None else tuple(map(fold_unicode, sample.choices)),
    )
