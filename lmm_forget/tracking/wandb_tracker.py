"""Logs one job as one W&B run: the same rows under the same numbers, however often the job is interrupted.

Every row has a number (W&B's _step) that follows from its content: the base is 0, then come the optimizer steps of
stage 1, its milestones, the metrics after it, the steps of stage 2, and so on. A job that runs again logs everything
again, from its store and its CSV files, and leaves out the rows that W&B already has. So an online run continues where
it stopped, and an offline run is complete by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from lmm_forget.errors import LmmForgetError
from lmm_forget.tracking import metric_names, wandb_artifacts
from lmm_forget.tracking.background_writer import BackgroundWriter, call_with_timeout
from lmm_forget.tracking.csv_tracker import STEP_METRICS, CsvTracker
from lmm_forget.tracking.probe_metrics import (
    LAYER_COLUMNS,
    build_layer_rows,
    flatten_milestones,
    flatten_probe_readings,
)
from lmm_forget.tracking.redaction import redact_secrets
from lmm_forget.tracking.tracker import StageMetrics
from lmm_forget.tracking.wandb_init import INTERRUPTED_EXIT_CODE, OFFLINE_FINISH_SECONDS, WandbInit

CURVE_EVERY = 10
"""Steps between two points of a training curve that is read from a stage's record."""
EXTRA_TIMEOUT_SECONDS = 20.0
"""Seconds beyond W&B's own timeouts that opening or closing a run may take on a busy machine."""
INTERRUPTED_TIMEOUT_SECONDS = 4.0
"""Seconds that an interrupted job waits for its run to open, and then to close: it may be killed soon after."""
ARTIFACT_CHOICES = ("none", "records", "all")
_NO_LOSS_NOTE = "results.json and the CSV files have everything"
_Table = tuple[str, Sequence[str], list[list[Any]]]


class WandbTracker:
    """Logs a job to W&B and to CSV files beside it; nothing that W&B does stops or slows the job.

    `suite` are the held-out tasks, `artifacts` is one of `ARTIFACT_CHOICES`, `model` the configuration that the base's
    artifact shows, `max_milestones` the number of milestones that a stage may have.
    """

    def __init__(
        self,
        wandb_init: WandbInit,
        csv_tracker: CsvTracker,
        *,
        suite: Sequence[str],
        artifacts: str = "none",
        model: Mapping[str, Any] | None = None,
        max_milestones: int = 0,
    ) -> None:
        self._wandb_init, self._csv_tracker = wandb_init, csv_tracker
        self._suite, self._artifacts, self._model = list(suite), artifacts, dict(model or {})
        self._max_milestones = max_milestones
        self._base: StageMetrics | None = None
        self._lineage: list[str] = []
        self._logged_artifacts: set[str] = set()
        self._stage_row = 0  # number of the last stage's row
        self._earlier_steps = 0  # optimizer steps before this stage
        self._index = 1
        self._last_logged_step = 0  # last step of this stage that was logged
        self._is_stalled = False
        self._writer = BackgroundWriter(self._open_run, self._close_run)

    def log_step(self, task: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log one point of the training curves; of a stage that resumes in its middle, the earlier points too."""
        if self._last_logged_step == 0 and step > 1:
            for earlier, earlier_metrics in sorted(self._csv_tracker.read_logged_steps(self._index, task).items()):
                if earlier < step:
                    self._log_curve_point(earlier, earlier_metrics)
        self._csv_tracker.log_step(task, step, metrics)
        self._log_curve_point(step, metrics)

    def log_stage(self, stage_metrics: StageMetrics) -> None:
        """Log what was measured after a stage, and its training curve if it was not trained here."""
        record, is_trained = stage_metrics.record, stage_metrics.is_trained_here
        if stage_metrics.index == 0:
            self._base, self._stage_row, self._earlier_steps, self._lineage = stage_metrics, 0, 0, []
        elif record is not None and stage_metrics.task is not None:
            logged_steps = self._csv_tracker.read_logged_steps(stage_metrics.index, stage_metrics.task)
            is_trained = is_trained or bool(logged_steps)
            for step, metrics in sorted({**_extract_loss_curve(record), **logged_steps}.items()):
                if self._last_logged_step < step <= record["steps"]:
                    self._log_curve_point(step, metrics)
            self._log_milestones(stage_metrics, int(record["steps"]))
            self._stage_row += int(record["steps"]) + self._max_milestones + 1
            self._earlier_steps += int(record["steps"])
        self._csv_tracker.log_stage(stage_metrics)
        self._enqueue_row(
            self._stage_row, self._build_stage_row(stage_metrics), self._build_stage_tables(stage_metrics)
        )
        self._log_artifact(stage_metrics, is_trained)
        self._index, self._last_logged_step = stage_metrics.index + 1, 0

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Log the figures of merit, the plan and the times as the run's summary."""
        summary: dict[str, Any] = {}
        for name, figure in results["figures"].items():
            for part, value in figure.items():
                if isinstance(value, Mapping):
                    summary |= {
                        metric_names.format_figure_metric_name(name, part if k == "value" else f"{part}/{k}"): v
                        for k, v in value.items()
                    }
                elif not isinstance(value, list):
                    summary[metric_names.format_figure_metric_name(name, "" if part == "value" else part)] = value
        plan, timings = results.get("plan") or {}, results.get("timings") or {}
        summary |= {f"plan/{k}": v for k, v in plan.items() if isinstance(v, (int, float))}
        summary |= {f"timings/{k}": v for k, v in timings.items() if isinstance(v, (int, float))}
        defined_summary = {name: value for name, value in summary.items() if value is not None}
        self._writer.enqueue(lambda run: run.summary.update(defined_summary))

    def close(self, error: BaseException | None = None) -> list[str]:
        """Log how the job ended and wait for W&B, in bounded time. Returns one line if W&B lacks anything."""
        self._csv_tracker.close(error)
        code, state = _describe_job_end(error)
        final_summary = {metric_names.STATE_FIELD: state}
        if state == "failed":
            final_summary[metric_names.ERROR_FIELD] = redact_secrets(
                (str(error).strip().splitlines() or [type(error).__name__])[0]
            )
        self._writer.enqueue(lambda run: run.summary.update(final_summary))
        if state == "interrupted":
            in_time = self._writer.close(code, INTERRUPTED_TIMEOUT_SECONDS, INTERRUPTED_TIMEOUT_SECONDS)
        else:
            open_timeout = self._wandb_init.timeout_seconds + EXTRA_TIMEOUT_SECONDS
            close_timeout = max(self._wandb_init.timeout_seconds, OFFLINE_FINISH_SECONDS) + EXTRA_TIMEOUT_SECONDS
            in_time = self._writer.close(code, open_timeout, close_timeout)
        warnings = self._describe_problems(in_time)
        for line in warnings:
            print(f"lmm-forget: note: {line}", file=sys.stderr, flush=True)
        return warnings

    def _describe_problems(self, in_time: bool) -> list[str]:
        wandb_init, writer = self._wandb_init, self._writer
        runs = wandb_init.folder / "wandb" / ("run-*" if wandb_init.opened_mode == "online" else "offline-run-*")
        upload_hint = f"the run is kept on disk; upload it with: wandb sync {runs}"
        if not wandb_init.opened_mode:
            text = f"W&B was not reached ({writer.first_error or 'no answer yet'}); {_NO_LOSS_NOTE}"
        elif wandb_init.offline_reason is not None:
            text = f"W&B was not reached ({wandb_init.offline_reason}); {upload_hint}"
        elif not in_time:
            text = f"W&B did not take everything in time; {upload_hint}"
        elif writer.first_error is not None:
            text = f"W&B lacks something ({writer.first_error}); {upload_hint}"
        elif writer.num_dropped:
            text = f"W&B was too slow, {writer.num_dropped} rows were left out; {_NO_LOSS_NOTE}"
        else:
            return []
        return [text]

    # --- in the background thread ----------------------------------------------------------------------------

    def _open_run(self) -> Any:
        run = self._wandb_init.open_run()
        if self._wandb_init.opened_mode == "disabled":
            return run
        run.summary[metric_names.STATE_FIELD] = "running"
        run.define_metric(metric_names.STAGE_AXIS)
        run.define_metric(metric_names.GLOBAL_STEP_AXIS)
        for globs, axis in (
            (metric_names.STAGE_GLOBS, metric_names.STAGE_AXIS),
            (metric_names.STEP_GLOBS, metric_names.GLOBAL_STEP_AXIS),
        ):
            for glob in globs:
                run.define_metric(glob, step_metric=axis)
        return run

    def _close_run(self, run: Any, exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            raise TimeoutError(f"the upload took longer than {self._wandb_init.timeout_seconds:g} s") from None
        self._wandb_init.clean_up(is_complete=exit_code == 0)

    # --- in the job's thread ---------------------------------------------------------------------------------

    def _enqueue_row(self, row: int, values: Mapping[str, Any], tables: Sequence[_Table] = ()) -> None:
        """Queue row number `row` for W&B, unless W&B already has it."""

        def log_row(run: Any) -> None:
            if row < self._wandb_init.first_missing_row:
                return
            run.log(dict(values), step=row)
            if tables and not self._is_stalled:
                wandb_tables = {
                    name: wandb_artifacts.build_wandb_table(columns, rows) for name, columns, rows in tables
                }
                self._call_server(lambda: run.log(wandb_tables, step=row))

        self._writer.enqueue(log_row)

    def _call_server(self, action: Callable[[], Any]) -> None:
        """Call what waits for W&B's server, unless it was too slow before: metrics must reach the disk in time."""
        if self._wandb_init.opened_mode != "online":
            action()
            return
        if self._is_stalled:
            return
        try:
            call_with_timeout(action, self._wandb_init.timeout_seconds)
        except TimeoutError:
            self._is_stalled = True
            raise TimeoutError("it stopped answering, tables and artifacts were left out from then on") from None

    def _log_curve_point(self, step: int, metrics: Mapping[str, float]) -> None:
        self._last_logged_step = step
        point = {f"train/{name}": metrics[name] for name in STEP_METRICS if name in metrics}
        self._enqueue_row(
            self._stage_row + step,
            {metric_names.GLOBAL_STEP_AXIS: self._earlier_steps + step, "train/stage": self._index, **point},
        )

    def _log_milestones(self, stage_metrics: StageMetrics, num_steps: int) -> None:
        milestone_metrics = flatten_milestones(stage_metrics.probes)[: self._max_milestones]
        for place, (step, metrics) in enumerate(milestone_metrics, start=1):
            renamed = {f"milestone/{name.removeprefix('probe/')}": value for name, value in metrics.items()}
            self._enqueue_row(
                self._stage_row + num_steps + place,
                {metric_names.GLOBAL_STEP_AXIS: self._earlier_steps + step, **renamed},
            )

    def _build_stage_row(self, stage_metrics: StageMetrics) -> dict[str, Any]:
        base = self._base or stage_metrics
        row: dict[str, Any] = {
            metric_names.STAGE_AXIS: stage_metrics.index,
            **flatten_probe_readings(stage_metrics.probes),
        }
        for task, value in stage_metrics.scores.items():
            row[metric_names.format_score_metric_name(task)] = value
            row[metric_names.format_change_metric_name(task)] = value - base.scores[task]
        heldout = [task for task in self._suite if task in stage_metrics.scores]
        targets = [task for task in stage_metrics.scores if task not in self._suite]
        if heldout:
            row[metric_names.HELDOUT_MEAN] = fmean(stage_metrics.scores[task] for task in heldout)
            row[metric_names.HELDOUT_CHANGE] = row[metric_names.HELDOUT_MEAN] - fmean(
                base.scores[task] for task in heldout
            )
        if targets:
            row[metric_names.TARGETS_MEAN] = fmean(stage_metrics.scores[task] for task in targets)
        if (
            stage_metrics.record is not None
            and stage_metrics.task is not None
            and stage_metrics.task in stage_metrics.scores
        ):
            row[metric_names.STAGE_TASK] = stage_metrics.task
            row[metric_names.STAGE_LEARNING] = row[metric_names.format_change_metric_name(stage_metrics.task)]
            row[metric_names.STAGE_LOSS] = stage_metrics.record["loss"][-1]
            row[metric_names.STAGE_STEPS] = stage_metrics.record["steps"]
        return row | {f"stage/seconds_{part}": seconds for part, seconds in stage_metrics.seconds.items()}

    def _build_stage_tables(self, stage_metrics: StageMetrics) -> list[_Table]:
        base = self._base or stage_metrics
        tables: list[_Table] = [
            (
                metric_names.ANSWERS_TABLE,
                wandb_artifacts.ANSWER_COLUMNS,
                wandb_artifacts.build_answer_rows(stage_metrics, base),
            ),
            (
                metric_names.LAYERS_TABLE,
                LAYER_COLUMNS,
                build_layer_rows(stage_metrics.index, stage_metrics.probes),
            ),
        ]
        return [table for table in tables if table[2]]

    def _log_artifact(self, stage_metrics: StageMetrics, is_trained: bool) -> None:
        """Log a stage's artifact: as output of the run if this job trained it, as input if it came from the store."""
        if self._artifacts == "none":
            return
        name = (
            wandb_artifacts.format_stage_artifact_name(stage_metrics)
            if stage_metrics.index
            else wandb_artifacts.format_base_artifact_name(stage_metrics)
        )
        lineage, model = list(self._lineage), self._model
        self._lineage.append(name)
        if name in self._logged_artifacts:
            return
        self._logged_artifacts.add(name)

        def log_to_run(run: Any) -> None:
            if self._wandb_init.opened_mode == "disabled":
                return
            if stage_metrics.index == 0:
                artifact = wandb_artifacts.build_base_artifact(stage_metrics, model)
            else:
                artifact = wandb_artifacts.build_stage_artifact(
                    stage_metrics, lineage, with_delta=self._artifacts == "all"
                )
            is_output = is_trained and stage_metrics.index > 0
            self._call_server(
                lambda: (
                    run.log_artifact(artifact) if is_output else wandb_artifacts.mark_artifact_as_input(run, artifact)
                )
            )

        self._writer.enqueue(log_to_run)


def _extract_loss_curve(record: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Every `CURVE_EVERY`-th point, and the last, of the losses that a stage's record holds for each step."""
    loss = record["loss"]
    steps = {*range(1, len(loss) + 1, CURVE_EVERY), len(loss)}
    return {step: {"loss": loss[step - 1]} for step in steps if step >= 1}


def _describe_job_end(error: BaseException | None) -> tuple[int, str]:
    """Exit code and state of a job that ended with `error`."""
    if error is None:
        return 0, "done"
    if isinstance(error, LmmForgetError):
        return 2, "failed"
    return (1, "failed") if isinstance(error, Exception) else (INTERRUPTED_EXIT_CODE, "interrupted")
