"""Learning, forgetting and their intervals: pure functions over scores (numpy and scipy, no model)."""

from lmm_forget.metrics.answers import build_figures_from_answers, task_scores_from_answers
from lmm_forget.metrics.bootstrap import POINTS, TaskScores
from lmm_forget.metrics.comparison import compare_mean, compare_pair, holm, resolvable, swap_test
from lmm_forget.metrics.figures import figures
from lmm_forget.metrics.significance import changes_from_base, mcnemar, paired_change
from lmm_forget.metrics.summary import results_scores, task_summary

__all__ = [
    "POINTS",
    "TaskScores",
    "build_figures_from_answers",
    "changes_from_base",
    "compare_mean",
    "compare_pair",
    "figures",
    "holm",
    "mcnemar",
    "paired_change",
    "resolvable",
    "results_scores",
    "swap_test",
    "task_scores_from_answers",
    "task_summary",
]
