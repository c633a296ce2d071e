"""Learning, forgetting and their intervals: pure functions over scores (numpy and scipy, no model)."""

from lmm_forget.metrics.answers import build_figures_from_answers, task_scores_from_answers
from lmm_forget.metrics.bootstrap import POINTS, TaskScores
from lmm_forget.metrics.figures import figures
from lmm_forget.metrics.significance import mcnemar, paired_change
from lmm_forget.metrics.summary import results_scores, task_summary

__all__ = [
    "POINTS",
    "TaskScores",
    "build_figures_from_answers",
    "figures",
    "mcnemar",
    "paired_change",
    "results_scores",
    "task_scores_from_answers",
    "task_summary",
]
