"""One job as one W&B run: the same rows under the same numbers, however often the job is interrupted.

Every row has a number that follows from what it says (W&B's `_step`): the base is 0, then come the optimizer steps
of stage 1, its milestones, the figures after it, the steps of stage 2, and so on. A job that is run again says
everything again, with what its store and its CSV files remember, and rows that W&B has already are left out. So an
online run goes on where it was, and an offline run is complete by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from lmm_forget.errors import LmmForgetError
from lmm_forget.tracking import content, names
from lmm_forget.tracking.courier import Courier, bounded
from lmm_forget.tracking.csv_files import FIGURES, CsvFiles
from lmm_forget.tracking.opening import INTERRUPTED, OFFLINE_FINISH, Opening
from lmm_forget.tracking.probes import LAYER_COLUMNS, layer_rows, milestones, stage_curves
from lmm_forget.tracking.secrets import scrub
from lmm_forget.tracking.tracker import Measured

CURVE_EVERY = 10
"""Steps between points of a training curve that only a stage's record remembers."""
OPENING_REST = 20.0
"""Seconds beyond W&B's own limits that opening a run, or closing it, may take on a busy machine."""
STOPPED_LIMIT = 4.0
"""Seconds that an interrupted job waits for a run to open, and for it to close: who interrupts kills soon after."""
ARTIFACTS = ("none", "records", "all")
_AGAIN = "results.json and the CSV files have everything"
_Table = tuple[str, Sequence[str], list[list[Any]]]


class WandbRun:
    """Follows a job in W&B and in CSV files beside it; nothing W&B does stops or slows the job.

    `suite` are the held-out tasks, `artifacts` one of `ARTIFACTS`, `model` what the base's artifact says about it,
    `milestone_rows` how many milestones a stage may have.
    """

    def __init__(
        self,
        opening: Opening,
        files: CsvFiles,
        *,
        suite: Sequence[str],
        artifacts: str = "none",
        model: Mapping[str, Any] | None = None,
        milestone_rows: int = 0,
    ) -> None:
        self._opening, self._files = opening, files
        self._suite, self._artifacts, self._model = list(suite), artifacts, dict(model or {})
        self._milestone_rows = milestone_rows
        self._base: Measured | None = None
        self._lineage: list[str] = []
        self._kept: set[str] = set()
        self._posted = -1  # number of the last row that was posted
        self._row = 0  # number of the last stage's row
        self._steps = 0  # optimizer steps before this stage
        self._index = 1
        self._told = 0  # steps of this stage that were told
        self._stuck = False
        self._courier = Courier(self._open, self._close)

    def training(self, task: str, step: int, figures: Mapping[str, float]) -> None:
        """Post one point of the training curves; a stage that goes on in its middle is told from its beginning."""
        if self._told == 0 and step > 1:
            for earlier, known in sorted(self._files.logged(self._index, task).items()):
                if earlier < step:
                    self._point(earlier, known)
        self._files.training(task, step, figures)
        self._point(step, figures)

    def stage(self, measured: Measured) -> None:
        """Post what was measured after a stage, and its curve where it was not trained here."""
        record, trained = measured.record, measured.trained
        if measured.index == 0:
            self._base, self._row, self._steps, self._lineage = measured, 0, 0, []
        elif record is not None and measured.task is not None:
            known = self._files.logged(measured.index, measured.task)
            trained = trained or bool(known)
            for step, figures in sorted({**_curve(record), **known}.items()):
                if self._told < step <= record["steps"]:
                    self._point(step, figures)
            self._milestones(measured, int(record["steps"]))
            self._row += int(record["steps"]) + self._milestone_rows + 1
            self._steps += int(record["steps"])
        self._files.stage(measured)
        self._post(self._row, self._figures(measured), self._tables(measured))
        self._keep(measured, trained)
        self._index, self._told = measured.index + 1, 0

    def results(self, results: Mapping[str, Any]) -> None:
        """Post the figures of merit, the plan and the times as the run's summary."""
        summary: dict[str, Any] = {}
        for name, figure in results["figures"].items():
            for part, value in figure.items():
                if isinstance(value, Mapping):
                    inner = {
                        names.figure(name, part if k == "value" else f"{part}/{k}"): v
                        for k, v in value.items()
                    }
                    summary |= inner
                elif not isinstance(value, list):
                    summary[names.figure(name, "" if part == "value" else part)] = value
        plan, timings = results.get("plan") or {}, results.get("timings") or {}
        summary |= {f"plan/{k}": v for k, v in plan.items() if isinstance(v, (int, float))}
        summary |= {f"timings/{k}": v for k, v in timings.items() if isinstance(v, (int, float))}
        kept = {name: value for name, value in summary.items() if value is not None}
        self._courier.post(lambda run: run.summary.update(kept))

    def close(self, error: BaseException | None = None) -> list[str]:
        """Say how the job ended and wait for W&B, in bounded time. Returns one line if W&B lacks anything."""
        self._files.close(error)
        code, state = _ended(error)
        told = {names.STATE: state}
        if state == "failed":
            told[names.ERROR] = scrub((str(error).strip().splitlines() or [type(error).__name__])[0])
        self._courier.post(lambda run: run.summary.update(told))
        if state == "interrupted":
            in_time = self._courier.close(code, STOPPED_LIMIT, STOPPED_LIMIT)
        else:
            opening = self._opening.seconds + OPENING_REST
            closing = max(self._opening.seconds, OFFLINE_FINISH) + OPENING_REST
            in_time = self._courier.close(code, opening, closing)
        notices = self._notice(in_time)
        for line in notices:
            print(f"lmm-forget: note: {line}", file=sys.stderr, flush=True)
        return notices

    def _notice(self, in_time: bool) -> list[str]:
        opening, courier = self._opening, self._courier
        runs = opening.folder / "wandb" / ("run-*" if opening.opened == "online" else "offline-run-*")
        kept = f"the run is kept on disk; upload it with: wandb sync {runs}"
        if not opening.opened:
            text = f"W&B was not reached ({courier.trouble or 'no answer yet'}); {_AGAIN}"
        elif opening.reason is not None:
            text = f"W&B was not reached ({opening.reason}); {kept}"
        elif not in_time:
            text = f"W&B did not take everything in time; {kept}"
        elif courier.trouble is not None:
            text = f"W&B lacks something ({courier.trouble}); {kept}"
        elif courier.dropped:
            text = f"W&B was too slow, {courier.dropped} rows were left out; {_AGAIN}"
        else:
            return []
        return [text]

    # --- in the courier's thread -----------------------------------------------------------------------------

    def _open(self) -> Any:
        run = self._opening.open()
        if self._opening.opened == "disabled":
            return run
        run.summary[names.STATE] = "running"
        run.define_metric(names.STAGE)
        run.define_metric(names.GLOBAL_STEP)
        for globs, axis in ((names.STAGE_GLOBS, names.STAGE), (names.STEP_GLOBS, names.GLOBAL_STEP)):
            for glob in globs:
                run.define_metric(glob, step_metric=axis)
        return run

    def _close(self, run: Any, exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            raise TimeoutError(f"the upload took longer than {self._opening.seconds:g} s") from None
        self._opening.tidy(complete=exit_code == 0)

    # --- in the job's thread ---------------------------------------------------------------------------------

    def _post(self, row: int, values: Mapping[str, Any], tables: Sequence[_Table] = ()) -> None:
        """Have W&B get row `row` unless it has it."""

        def deliver(run: Any) -> None:
            if row < self._opening.first:
                return
            run.log(dict(values), step=row)
            if tables and not self._stuck:
                made = {name: content.table(columns, rows) for name, columns, rows in tables}
                self._slowly(lambda: run.log(made, step=row))

        self._courier.post(deliver)

    def _slowly(self, action: Callable[[], Any]) -> None:
        """Do what waits for W&B's server, unless that was too slow before: figures must get to the disk in time."""
        if self._opening.opened != "online":
            action()
            return
        if self._stuck:
            return
        try:
            bounded(action, self._opening.seconds)
        except TimeoutError:
            self._stuck = True
            raise TimeoutError(
                "it stopped answering, tables and artifacts were left out from then on"
            ) from None

    def _point(self, step: int, figures: Mapping[str, float]) -> None:
        self._told = step
        point = {f"train/{name}": figures[name] for name in FIGURES if name in figures}
        self._post(
            self._row + step,
            {names.GLOBAL_STEP: self._steps + step, "train/stage": self._index, **point},
        )

    def _milestones(self, measured: Measured, steps: int) -> None:
        found = milestones(measured.probes)[: self._milestone_rows]
        for place, (step, figures) in enumerate(found, start=1):
            renamed = {f"milestone/{name.removeprefix('probe/')}": value for name, value in figures.items()}
            self._post(self._row + steps + place, {names.GLOBAL_STEP: self._steps + step, **renamed})

    def _figures(self, measured: Measured) -> dict[str, Any]:
        base = self._base or measured
        row: dict[str, Any] = {names.STAGE: measured.index, **stage_curves(measured.probes)}
        for task, value in measured.scores.items():
            row[names.score(task)] = value
            row[names.change(task)] = value - base.scores[task]
        heldout = [task for task in self._suite if task in measured.scores]
        targets = [task for task in measured.scores if task not in self._suite]
        if heldout:
            row[names.HELDOUT] = fmean(measured.scores[task] for task in heldout)
            row[names.HELDOUT_CHANGE] = row[names.HELDOUT] - fmean(base.scores[task] for task in heldout)
        if targets:
            row[names.TARGETS] = fmean(measured.scores[task] for task in targets)
        if measured.record is not None and measured.task is not None and measured.task in measured.scores:
            row["taught/task"] = measured.task
            row["taught/learning"] = row[names.change(measured.task)]
            row["taught/loss"] = measured.record["loss"][-1]
            row["taught/steps"] = measured.record["steps"]
        return row | {f"taught/seconds_{part}": seconds for part, seconds in measured.seconds.items()}

    def _tables(self, measured: Measured) -> list[_Table]:
        base = self._base or measured
        tables: list[_Table] = [
            (names.ANSWERS, content.ANSWER_COLUMNS, content.answer_rows(measured, base)),
            (names.LAYERS, LAYER_COLUMNS, layer_rows(measured.index, measured.probes)),
        ]
        return [table for table in tables if table[2]]

    def _keep(self, measured: Measured, trained: bool) -> None:
        """Post a stage's artifact: what this job trained as its output, what it found in the store as its input."""
        if self._artifacts == "none":
            return
        name = content.stage_name(measured) if measured.index else content.base_name(measured)
        lineage, model = list(self._lineage), self._model
        self._lineage.append(name)
        if name in self._kept:
            return
        self._kept.add(name)

        def deliver(run: Any) -> None:
            if self._opening.opened == "disabled":
                return
            if measured.index == 0:
                artifact = content.base_artifact(measured, model)
            else:
                artifact = content.stage_artifact(measured, lineage, with_delta=self._artifacts == "all")
            output = trained and measured.index > 0
            self._slowly(lambda: run.log_artifact(artifact) if output else content.use(run, artifact))

        self._courier.post(deliver)


def _curve(record: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Points of the training curve that a stage's record holds (its loss at each step), thinned."""
    loss = record["loss"]
    steps = {*range(1, len(loss) + 1, CURVE_EVERY), len(loss)}
    return {step: {"loss": loss[step - 1]} for step in steps if step >= 1}


def _ended(error: BaseException | None) -> tuple[int, str]:
    """Exit code and state of a job that ended with `error`."""
    if error is None:
        return 0, "done"
    if isinstance(error, LmmForgetError):
        return 2, "failed"
    return (1, "failed") if isinstance(error, Exception) else (INTERRUPTED, "interrupted")
