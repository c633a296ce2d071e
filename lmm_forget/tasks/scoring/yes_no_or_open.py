"""Yes/no questions and open ones side by side, as in PathVQA."""

from __future__ import annotations

from dataclasses import dataclass

from lmm_forget.errors import ConfigError
from lmm_forget.tasks.scoring.exact import equals_any_reference, extract_yes_no, states_any_reference
from lmm_forget.tasks.scoring.overlap import compute_bleu, compute_token_f1
from lmm_forget.tasks.scoring.scorer import AnswerScorer
from lmm_forget.tasks.scoring.tokenizing import normalize_text
from lmm_forget.tasks.task import Sample

OPEN_METRICS = ("exact", "f1", "bleu1", "bleu2", "bleu3")


@dataclass(frozen=True)
class YesNoOrOpenScorer(AnswerScorer):
    """A question is closed if its reference is yes or no, else open.

    `value` of a closed question: the answer is that word, up to case and white space; of an open one what
    `open` says: `exact` equality up to case and white space, `f1` of words, `bleu1` to `bleu3`. `tolerant`:
    the yes or no at the start of an answer; a reference that occurs in the answer as whole words. Raises
    ConfigError for another `open`.
    """

    open: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.open not in OPEN_METRICS:
            raise ConfigError(f"scorer: open={self.open} is not known; choose one of: {', '.join(OPEN_METRICS)}")

    def score_strict(self, answer: str, sample: Sample) -> float:
        """Equality, or the overlap that `open` names."""
        if self.open == "exact" or is_yes_no_question(sample):
            return float(equals_any_reference(answer, sample.answers))
        if self.open == "f1":
            return max(compute_token_f1(answer, reference) for reference in sample.answers)
        return max(compute_bleu(answer, reference, int(self.open[-1])) for reference in sample.answers)

    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """The yes or no, or the reference, inside a longer answer."""
        if is_yes_no_question(sample):
            return float(extract_yes_no(answer) in {normalize_text(reference) for reference in sample.answers})
        return float(states_any_reference(answer, sample.answers))


def is_yes_no_question(sample: Sample) -> bool:
    """Whether all references are yes or no."""
    return all(normalize_text(reference) in ("yes", "no") for reference in sample.answers)
