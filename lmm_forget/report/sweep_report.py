"""A sweep as its report needs it: read once, grouped into settings once, shared by page, tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lmm_forget.report.experiment_settings import ExperimentSetting, group_rows_by_setting
from lmm_forget.report.job_results import Sweep, load_sweep, require_readable_results
from lmm_forget.report.job_rows import JobRow, build_job_rows, list_report_notes
from lmm_forget.report.shared_suite import restrict_to_shared_suite


@dataclass(frozen=True)
class SweepReport:
    """The jobs of a folder: `sweep` holds their records, `rows` one row per finished job, `settings` groups the rows.

    `notes` are the sentences that a reader must know beside the numbers.
    """

    folder: Path
    sweep: Sweep
    rows: list[JobRow]
    settings: list[ExperimentSetting]
    notes: list[str]


def load_sweep_report(folder: Path) -> SweepReport:
    """Read the records of a sweep's folder (or of a single job's).

    Held-out figures cover the benchmarks that all jobs share. Raises DataError if the folder holds no job, or only jobs
    whose results cannot be read.
    """
    sweep = load_sweep(folder)
    require_readable_results(sweep)
    sweep = restrict_to_shared_suite(sweep)
    rows = build_job_rows(sweep.results.values())
    notes = [*(list_report_notes(sweep.results.values()) if rows else []), *sweep.notes]
    return SweepReport(folder, sweep, rows, group_rows_by_setting(rows, sweep.unfinished), notes)
