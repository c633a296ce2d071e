"""Learning, forgetting and their intervals: pure functions over scores (numpy and scipy, no model)."""

from lmm_forget.metrics.answer_scores import build_task_scores, compute_figures_from_answers
from lmm_forget.metrics.bootstrap import POINTS, TaskScores
from lmm_forget.metrics.comparison import (
    apply_holm_correction,
    compare_mean_scores,
    compare_task_scores,
    compute_detectable_change,
    compute_swap_test_p_value,
)
from lmm_forget.metrics.figures_of_merit import compute_figures_of_merit
from lmm_forget.metrics.score_summary import build_score_entry, summarize_task_scores
from lmm_forget.metrics.significance import (
    estimate_changes_from_base,
    estimate_paired_change,
    run_mcnemar_test,
)

__all__ = [
    "POINTS",
    "TaskScores",
    "compute_figures_from_answers",
    "estimate_changes_from_base",
    "compare_mean_scores",
    "compare_task_scores",
    "compute_figures_of_merit",
    "apply_holm_correction",
    "run_mcnemar_test",
    "estimate_paired_change",
    "compute_detectable_change",
    "build_score_entry",
    "compute_swap_test_p_value",
    "build_task_scores",
    "summarize_task_scores",
]
