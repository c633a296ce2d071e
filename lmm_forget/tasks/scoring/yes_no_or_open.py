"""Score data sets that mix yes/no questions and open ones, such as PathVQA."""

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
    """A question is a yes/no question if its references are yes or no, else it is open.

    Strict, yes/no: the answer is that word, up to case and white space. Strict, open: the metric named by `open`, one
    of `exact` (equality up to case and white space), `f1` (`compute_token_f1`) and `bleu1` to `bleu3`
    (`compute_bleu`). Tolerant: `extract_yes_no` finds the word, or the reference occurs in the answer as whole words.
    Raises ConfigError for any other `open`.
    """

    open: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.open not in OPEN_METRICS:
            raise ConfigError(f"scorer: open={self.open} is not known; choose one of: {', '.join(OPEN_METRICS)}")

    def score_strict(self, answer: str, sample: Sample) -> float:
        """Equality (0 or 1), or for open questions the metric named by `open`."""
        if self.open == "exact" or is_yes_no_question(sample):
            return float(equals_any_reference(answer, sample.answers))
        if self.open == "f1":
            return max(compute_token_f1(answer, reference) for reference in sample.answers)
        return max(compute_bleu(answer, reference, int(self.open[-1])) for reference in sample.answers)

    def score_tolerant(self, answer: str, sample: Sample) -> float:
        """1 if a longer answer states the right word or contains a reference, else 0."""
        if is_yes_no_question(sample):
            return float(extract_yes_no(answer) in {normalize_text(reference) for reference in sample.answers})
        return float(states_any_reference(answer, sample.answers))


def is_yes_no_question(sample: Sample) -> bool:
    """Whether all references of a sample are yes or no."""
    return all(normalize_text(reference) in ("yes", "no") for reference in sample.answers)
