"""`lmm-forget compare A B`: what changed between two jobs, two stages, or a job and its base.

A and B are folders of finished jobs, `multirun/demo/sa_proj`, with `@2` for the model after its second stage, `@base`
for the model before any, and nothing (or `@last`) for the end. One folder alone is compared with its own base. Two
sweeps are compared job by job, by their jobs' names. Differences are B - A, in percentage points.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lmm_forget.cli.parser import Parser, run_command, take_format
from lmm_forget.errors import ConfigError, DataError
from lmm_forget.report.conditions import Condition
from lmm_forget.report.load import is_job
from lmm_forget.report.pair_table import show
from lmm_forget.report.pairs import SCHEMA, compare_places
from lmm_forget.report.places import Place, place, split_stage

EXAMPLES = """\
examples:
  lmm-forget compare multirun/demo/llm multirun/demo/sa_proj
  lmm-forget compare multirun/demo/sa_proj@2 multirun/demo/sa_proj@5 format=json
  lmm-forget compare multirun/demo/sa_proj --fail-if "heldout < -1.0"
  lmm-forget compare multirun/night1 multirun/night2 --fail-if "heldout.high < 0" --fail-if "worst < -5"

A condition is NAME[.FIELD] < NUMBER (also <=, >, >=). NAME: heldout or targets (means), worst (the held-out benchmark
that fell most), or a task. FIELD: value (the default), low, high, p_value, p_holm (tasks), lost, gained, resolvable.

exit codes: 0 compared, 1 a --fail-if condition holds, 2 a mistake in what was asked for or nothing to compare
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Compare what `argv` (default: the command line) names; returns the exit code, 1 where a condition holds."""
    return run_command(_compare, argv)


def _compare(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="lmm-forget compare",
        description=(__doc__ or "").split("\n", 1)[1].strip(),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "places", nargs="*", metavar="FOLDER[@STAGE]", help="one or two; also format=table|json"
    )
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help="exit with 1 where it holds; may be given several times",
    )
    given = parser.read(arguments)
    form, words = take_format(given.places)
    conditions = [Condition.parse(text) for text in given.fail_if]
    pairs, notes = pairs_of(words)
    if conditions and notes:
        raise DataError(f"{notes[0]}; a --fail-if condition holds for all jobs or cannot be checked")
    found = [compare_places(first, second) for first, second in pairs]
    verdicts = [[condition.judge(each) for condition in conditions] for each in found]
    for each, judged in zip(found, verdicts, strict=True):
        each["conditions"] = judged
    if form == "json":
        print(json.dumps(_json(words, found, notes), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show(found, notes, Console(highlight=False))
    return int(any(one["holds"] for judged in verdicts for one in judged))


def pairs_of(words: Sequence[str]) -> tuple[list[tuple[Place, Place]], list[str]]:
    """The pairs of places that one or two words of the command line mean, and what was left out.

    Raises ConfigError or DataError for words that mean nothing.
    """
    if len(words) not in (1, 2):
        raise ConfigError(
            f"found {len(words)} folders, expected one or two: lmm-forget compare A B (see --help)"
        )
    named = [split_stage(word) for word in words]
    if len(named) == 1:
        there = place(*named[0])
        if there.stage == 0:
            raise ConfigError(f"{words[0]} alone is compared with its own base, which it is")
        return [(there.at(0), there)], []
    for folder, _ in named:
        if not folder.exists():
            raise DataError(f"{folder}: no such folder, expected multirun/<name> or multirun/<name>/<job>")
        if folder.is_dir() and not is_job(folder) and not _jobs(folder):
            raise DataError(
                f"{folder}: holds no finished job, expected one or several folders with results.json"
            )
    jobs = [{} if is_job(folder) else _jobs(folder) for folder, _ in named]
    if not any(jobs):
        return [(place(*named[0]), place(*named[1]))], []
    if not all(jobs):
        odd = words[0] if jobs[0] else words[1]
        raise ConfigError(f"{odd} is a sweep and the other is not; compare two jobs, or two sweeps")
    return _matched(named, jobs)


def _matched(
    named: Sequence[tuple[Path, str | None]], jobs: Sequence[dict[str, Path]]
) -> tuple[list[tuple[Place, Place]], list[str]]:
    """Two sweeps' jobs of equal name; where each has a single job, these."""
    shared = [name for name in jobs[0] if name in jobs[1]]
    notes = []
    for (folder, _), mine, other in zip(named, jobs, reversed(jobs), strict=True):
        alone = [name for name in mine if name not in other]
        if alone and shared:
            notes.append(f"only {folder} has finished {', '.join(alone)}: left out")
    stages = [stage for _, stage in named]
    if shared:
        return [(place(jobs[0][name], stages[0]), place(jobs[1][name], stages[1])) for name in shared], notes
    if len(jobs[0]) == len(jobs[1]) == 1:
        first, second = (next(iter(each.values())) for each in jobs)
        return [(place(first, stages[0]), place(second, stages[1]))], notes
    raise ConfigError(
        f"{named[0][0]} and {named[1][0]} share no finished job's name "
        f"({', '.join(jobs[0])}; {', '.join(jobs[1])}); name two jobs"
    )


def _jobs(folder: Path) -> dict[str, Path]:
    """Finished jobs below a sweep's folder, by name."""
    if not folder.is_dir():
        return {}
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/results.json"))}


def _json(words: Sequence[str], found: Sequence[dict[str, Any]], notes: Sequence[str]) -> dict[str, Any]:
    """One comparison as it is; those of two sweeps as a list."""
    if len(found) == 1 and not notes:
        return found[0]
    return {"schema": SCHEMA, "sweeps": list(words), "comparisons": list(found), "notes": list(notes)}
