"""A task's entry in `scores` of results.json as a torchmetrics metric: updated batch by batch, synchronised over ranks.

The metric collects the scores; the statistics over them (cluster-robust error, macro mean) are those of `metrics/`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lmm_forget.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lmm_forget.evaluation.scored_answers import LOGIT_TIE_MARGIN, Answer
from lmm_forget.metrics.score_summary import build_score_entry


class TaskScoreMetric(Metric):
    """{value, n, stderr, strict, tolerant, compat, near_ties} of one task, in points 0-100; see `build_score_entry`.

    `near_ties` counts answers that rounding alone could have changed. The result equals, bit for bit, that of all
    answers in one process and one batch: scores are kept in fp64 with their positions, and sorted before they are used.

    Args:
        image_ids: [n] the image of every sample of the task, by position; samples that share one form a cluster
        groups: [n] the category of every sample of a macro task; None for a plain mean
        scoring_mode: which score is the `value`, "strict" or "compat"
        process_group: the ranks among which every position is updated exactly once
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    positions: list[Tensor]
    scores: list[Tensor]
    near_ties: Tensor

    def __init__(
        self,
        image_ids: Sequence[str],
        groups: Sequence[str] | None = None,
        *,
        scoring_mode: str = "strict",
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        super().__init__(
            process_group=process_group.cpu_group,
            distributed_available_fn=lambda: process_group.size > 1,
        )
        self.image_ids, self.groups, self.scoring_mode = image_ids, groups, scoring_mode
        self.add_state("positions", [], dist_reduce_fx="cat")
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("near_ties", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, positions: Sequence[int], answers: Sequence[Answer]) -> None:
        """Add the answers [B] to the questions at `positions` [B]. Raises ValueError if their numbers differ."""
        if len(positions) != len(answers):
            raise ValueError(f"{len(answers)} answers, but {len(positions)} positions")
        rows = [
            [math.nan if score is None else score for score in (answer.value, answer.tolerant, answer.compat)]
            for answer in answers
        ]
        self.positions.append(torch.tensor(positions, dtype=torch.int64))
        self.scores.append(torch.tensor(rows, dtype=torch.float64).reshape(-1, 3))
        self.near_ties += sum(answer.logit_margin < LOGIT_TIE_MARGIN for answer in answers)

    def compute(self) -> dict[str, Any]:
        """The entry. Raises DataError without any answer, or without any that has the score of `scoring_mode`."""
        order = torch.argsort(dim_zero_cat(self.positions))
        positions = dim_zero_cat(self.positions)[order].tolist()
        strict, tolerant, compat = dim_zero_cat(self.scores)[order].T.tolist()
        entry = build_score_entry(
            strict,
            [self.image_ids[i] for i in positions],
            None if self.groups is None else [self.groups[i] for i in positions],
            tolerant_scores=[None if math.isnan(score) else score for score in tolerant],
            compat_scores=[None if math.isnan(score) else score for score in compat],
            score_kind=self.scoring_mode,
        )
        return {**entry, "near_ties": int(self.near_ties)}
