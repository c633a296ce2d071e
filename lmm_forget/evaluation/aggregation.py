"""The pure scores as torchmetrics metrics, for loops that see answers batch by batch or on several ranks.

Jobs themselves keep every answer and need none of these; they are for validation inside one's own training loop.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lmm_forget.errors import DataError
from lmm_forget.tasks.scoring.text_match import compute_anls, is_relaxed_match
from lmm_forget.tasks.scoring.vqa import compute_vqa_accuracy


class MeanScore(Metric, ABC):
    """Mean over answers of a score in 0..1; equal to the mean over all of them, however they were batched.

    `compute` raises DataError before the first answer.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def score_answer(self, answer: str, references: Sequence[str]) -> float:
        """The score of one answer in 0..1."""

    def update(self, preds: Sequence[str], target: Sequence[Sequence[str]]) -> None:
        """Add answers [B], each with its references. Raises ValueError if their numbers differ."""
        scores = [self.score_answer(answer, references) for answer, references in zip(preds, target, strict=True)]
        self.total += sum(scores)
        self.count += len(scores)

    def compute(self) -> Tensor:
        """The mean so far, a scalar in 0..1."""
        if not self.count:
            raise DataError(f"{type(self).__name__}: there is no answer yet to take the mean of")
        return self.total / self.count


class MeanANLS(MeanScore):
    """Average normalised Levenshtein similarity; a similarity below `threshold` counts 0."""

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def score_answer(self, answer: str, references: Sequence[str]) -> float:
        """See `scoring.text.anls`."""
        return compute_anls(answer, references, self.threshold)


class MeanVQAAccuracy(MeanScore):
    """VQA accuracy; the references of an answer are those of all its annotators."""

    def score_answer(self, answer: str, references: Sequence[str]) -> float:
        """See `scoring.vqa.compute_vqa_accuracy`."""
        return compute_vqa_accuracy(answer, references)


class MeanRelaxedAccuracy(MeanScore):
    """Share of answers that equal a reference, figures within `tolerance` of it."""

    def __init__(self, tolerance: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tolerance = tolerance

    def score_answer(self, answer: str, references: Sequence[str]) -> float:
        """See `scoring.text.relaxed`."""
        return float(any(is_relaxed_match(answer, reference, self.tolerance) for reference in references))


class MacroAccuracy(Metric):
    """Mean over groups of each group's mean score, as MMStar has it over its 18 categories.

    Groups need not be known before; those that no answer fell into are left out. `compute` raises DataError
    before the first answer.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    groups: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("groups", [], dist_reduce_fx="cat")

    def update(self, scores: Sequence[float], groups: Sequence[str]) -> None:
        """Add scores [B] in 0..1 with the names of their groups. Raises ValueError if their numbers differ."""
        if len(scores) != len(groups):
            raise ValueError(f"{len(scores)} scores, but {len(groups)} groups")
        self.scores.append(torch.tensor(list(scores), dtype=torch.float64, device=self.device))
        group_hashes = [_hash_group_name(group) for group in groups]
        self.groups.append(torch.tensor(group_hashes, dtype=torch.int64, device=self.device))

    def compute(self) -> Tensor:
        """The macro mean so far, a scalar in 0..1."""
        scores, groups = _concatenate_states(self.scores), _concatenate_states(self.groups)
        if not len(scores):
            raise DataError("MacroAccuracy: there is no answer yet to take the mean of")
        _, group_indices, counts = torch.unique(groups, return_inverse=True, return_counts=True)
        sums = torch.zeros(len(counts), dtype=scores.dtype, device=scores.device)
        return (sums.index_add(0, group_indices, scores) / counts).mean()


def _concatenate_states(states: list[Tensor] | Tensor) -> Tensor:
    """A list state in one piece: after a reduction over ranks it is a tensor already."""
    if isinstance(states, Tensor):
        return states
    return torch.cat(states) if states else torch.zeros(0)


def _hash_group_name(group: str) -> int:
    """The same 63-bit number for a name on every rank."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") >> 1
