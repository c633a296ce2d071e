"""`lmm-forget compare A B`: what changed between two jobs, two stages, or a job and its base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.cli.command import Arguments, Command, Option
from lmm_forget.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lmm_forget.report.job_stages import JobStage


def _compare_jobs(arguments: Arguments) -> int:
    from rich.console import Console

    from lmm_forget.report.comparison_table import print_comparisons
    from lmm_forget.report.fail_conditions import FailCondition
    from lmm_forget.report.job_comparison import compare_job_stages

    conditions = [FailCondition.parse(text) for text in arguments.get_all("--fail-if")]
    pairs, notes = resolve_stage_pairs(arguments.words)
    if conditions and notes:
        raise DataError(f"{notes[0]}; a --fail-if condition holds for all jobs or cannot be checked")
    comparisons = [compare_job_stages(first, second) for first, second in pairs]
    condition_results = [[condition.evaluate(each) for condition in conditions] for each in comparisons]
    for comparison, results in zip(comparisons, condition_results, strict=True):
        comparison["conditions"] = results
    if arguments.output_format == "json":
        report = _build_json_report(arguments.words, comparisons, notes)
        print(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_comparisons(comparisons, notes, Console(highlight=False))
    return int(any(result["holds"] for results in condition_results for result in results))


def resolve_stage_pairs(arguments: Sequence[str]) -> tuple[list[tuple[JobStage, JobStage]], list[str]]:
    """The pairs of stages that one or two words of the command line name, and notes on what was left out.

    Raises ConfigError or DataError for words that mean nothing.
    """
    from lmm_forget.report.job_results import is_job_folder
    from lmm_forget.report.job_stages import load_job_stage, split_job_and_stage

    if len(arguments) not in (1, 2):
        raise ConfigError(f"found {len(arguments)} folders, expected one or two: lmm-forget compare A B (see --help)")
    parsed_stages = [split_job_and_stage(word) for word in arguments]
    if len(parsed_stages) == 1:
        compared_stage = load_job_stage(*parsed_stages[0])
        if compared_stage.stage == 0:
            raise ConfigError(f"{arguments[0]} alone is compared with its own base, which it is")
        return [(compared_stage.with_stage(0), compared_stage)], []
    for folder, _ in parsed_stages:
        if not folder.exists():
            raise DataError(f"{folder}: no such folder, expected multirun/<name> or multirun/<name>/<job>")
        if folder.is_dir() and not is_job_folder(folder) and not _find_finished_jobs(folder):
            raise DataError(f"{folder}: holds no finished job, expected one or several folders with results.json")
    jobs = [{} if is_job_folder(folder) else _find_finished_jobs(folder) for folder, _ in parsed_stages]
    if not any(jobs):
        return [(load_job_stage(*parsed_stages[0]), load_job_stage(*parsed_stages[1]))], []
    if not all(jobs):
        sweep_argument = arguments[0] if jobs[0] else arguments[1]
        raise ConfigError(f"{sweep_argument} is a sweep and the other is not; compare two jobs, or two sweeps")
    return _pair_jobs_by_name(parsed_stages, jobs)


def _pair_jobs_by_name(
    parsed_stages: Sequence[tuple[Path, str | None]], jobs_by_name: Sequence[dict[str, Path]]
) -> tuple[list[tuple[JobStage, JobStage]], list[str]]:
    """Two sweeps' jobs of equal name; where each has a single job, these."""
    from lmm_forget.report.job_stages import load_job_stage

    shared = [name for name in jobs_by_name[0] if name in jobs_by_name[1]]
    notes = []
    for (folder, _), own_jobs, other_jobs in zip(parsed_stages, jobs_by_name, reversed(jobs_by_name), strict=True):
        unmatched_jobs = [name for name in own_jobs if name not in other_jobs]
        if unmatched_jobs and shared:
            notes.append(f"only {folder} has finished {', '.join(unmatched_jobs)}: left out")
    stages = [stage for _, stage in parsed_stages]
    if shared:
        return [
            (
                load_job_stage(jobs_by_name[0][name], stages[0]),
                load_job_stage(jobs_by_name[1][name], stages[1]),
            )
            for name in shared
        ], notes
    if len(jobs_by_name[0]) == len(jobs_by_name[1]) == 1:
        first, second = (next(iter(each.values())) for each in jobs_by_name)
        return [(load_job_stage(first, stages[0]), load_job_stage(second, stages[1]))], notes
    raise ConfigError(
        f"{parsed_stages[0][0]} and {parsed_stages[1][0]} share no finished job's name "
        f"({', '.join(jobs_by_name[0])}; {', '.join(jobs_by_name[1])}); name two jobs"
    )


def _find_finished_jobs(sweep_dir: Path) -> dict[str, Path]:
    """Finished jobs below a sweep's folder, by name."""
    if not sweep_dir.is_dir():
        return {}
    return {path.parent.name: path.parent for path in sorted(sweep_dir.glob("*/results.json"))}


def _build_json_report(
    arguments: Sequence[str], comparisons: Sequence[dict[str, Any]], notes: Sequence[str]
) -> dict[str, Any]:
    """One comparison as it is; those of two sweeps as a list."""
    from lmm_forget.report.job_comparison import COMPARISON_SCHEMA

    if len(comparisons) == 1 and not notes:
        return comparisons[0]
    return {
        "schema": COMPARISON_SCHEMA,
        "sweeps": list(arguments),
        "comparisons": list(comparisons),
        "notes": list(notes),
    }


COMMAND = Command(
    name="compare",
    summary="compare two jobs, two stages, or a job and its base, question by question",
    run=_compare_jobs,
    usage="A[@STAGE] [B[@STAGE]]",
    words="A B",
    description="""
A and B are folders of finished jobs, `multirun/demo/sa_proj`, with `@2` for the model after its second stage, `@base`
for the model before any, and nothing (or `@last`) for the end. One folder alone is compared with its own base. Two
sweeps are compared job by job, by their jobs' names. Differences are B - A, in percentage points.""",
    options=(Option("--fail-if", "CONDITION", "exit with 1 where it holds", repeatable=True),),
    formats=("table", "json"),
    notes="""\
A condition is NAME[.FIELD] < NUMBER (also <=, >, >=). NAME: heldout or targets (means), worst (the held-out benchmark
that fell most), or a task. FIELD: value (the default), low, high, p_value, p_holm (tasks), lost, gained,
resolvable.""",
    examples=(
        "lmm-forget compare multirun/demo/llm multirun/demo/sa_proj",
        "lmm-forget compare multirun/demo/sa_proj@2 multirun/demo/sa_proj@5 format=json",
        'lmm-forget compare multirun/demo/sa_proj --fail-if "heldout < -1.0"',
        'lmm-forget compare multirun/night1 multirun/night2 --fail-if "heldout.high < 0" --fail-if "worst < -5"',
    ),
    exit_codes={
        0: "compared",
        1: "a --fail-if condition holds",
        2: "a mistake in what was asked for, or nothing to compare",
    },
)
main = COMMAND.main
