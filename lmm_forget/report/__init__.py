"""Tables, pictures, pages and summaries, made from jobs' records alone; imports no model library."""

from lmm_forget.report.job_results import Sweep, UnfinishedJob, load_results, load_sweep
from lmm_forget.report.job_rows import JobRow, build_job_rows, list_report_notes
from lmm_forget.report.terminal_table import print_sweep_table

__all__ = [
    "JobRow",
    "Sweep",
    "UnfinishedJob",
    "load_results",
    "load_sweep",
    "list_report_notes",
    "print_sweep_table",
    "build_job_rows",
]
