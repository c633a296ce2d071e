"""Builds the W&B dashboard (saved view) of a project; only saving it needs the network."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import ConfigError, LmmForgetError, shorten_value
from lmm_forget.tracking import metric_names

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

RECIPE_FIELD = "recipe.name"
"""Field of a run's configuration by which panels group runs."""
PINNED_COLUMNS = (
    f"config:{RECIPE_FIELD}",
    f"summary:{metric_names.format_figure_metric_name('target_learning')}",
    f"summary:{metric_names.format_figure_metric_name('target_forgetting')}",
    f"summary:{metric_names.format_figure_metric_name('heldout_forgetting')}",
    f"summary:{metric_names.STATE_FIELD}",
)


@dataclass(frozen=True)
class DashboardSpec:
    """Where a dashboard is saved, and the tasks it has panels for; `sweep` restricts it to the runs of one sweep."""

    entity: str
    project: str
    targets: tuple[str, ...]
    suite: tuple[str, ...]
    name: str = "Learning and forgetting"
    sweep: str | None = None


def build_workspace(spec: DashboardSpec) -> Workspace:
    """Build the view; equal specifications give equal views.

    Raises ConfigError if the package wandb-workspaces is not installed, or refuses the view.
    """
    try:  # optional dependency; imported only by this command
        import wandb_workspaces.reports.v2 as blocks
        import wandb_workspaces.workspaces as parts
        from wandb_workspaces import expr
    except ImportError:
        raise ConfigError("dashboards need the package wandb-workspaces: pip install 'lmm-forget[dashboard]'") from None
    sections = [
        _create_section("Learning against forgetting", _create_figure_panels(), columns=3),
        _create_section("Held-out abilities per stage", _create_stage_panels(), columns=2),
        _create_section(
            "Benchmarks",
            [_create_stage_line_plot(metric_names.format_score_metric_name(task), task) for task in spec.suite],
            columns=4,
        ),
        _create_section(
            "Skills",
            [_create_stage_line_plot(metric_names.format_score_metric_name(task), task) for task in spec.targets],
            columns=4,
        ),
        _create_section("Probes", _create_probe_panels(), columns=2),
        _create_section("Answers", [blocks.WeavePanelSummaryTable(table_name=metric_names.ANSWERS_TABLE)], columns=1),
        _create_section("Training", _create_training_panels(), columns=2),
        _create_section("Runs side by side", [blocks.RunComparer(diff_only="split")], columns=1),
    ]
    runs = parts.RunsetSettings(pinned_columns=["run:displayName", *PINNED_COLUMNS])
    if spec.sweep is not None:
        runs = parts.RunsetSettings(
            pinned_columns=["run:displayName", *PINNED_COLUMNS], filters=[expr.Metric("Group") == spec.sweep]
        )
    try:
        workspace = parts.Workspace(
            entity=spec.entity,
            project=spec.project,
            name=spec.name,
            sections=sections,
            settings=parts.WorkspaceSettings(x_axis=metric_names.STAGE_AXIS, max_runs=100),
            runset_settings=runs,
        )
    except ValueError as error:  # the package validates its arguments; its message has four lines
        raise ConfigError(_describe_refusal(spec, error)) from error
    _make_deterministic(workspace)
    return workspace


def workspace_to_json(workspace: Workspace) -> dict[str, Any]:
    """The view as W&B stores it: {entity, project, displayName, spec}."""
    model = workspace._to_model()
    header = {"entity": model.entity, "project": model.project, "displayName": model.display_name}
    return {**header, "spec": model.spec.model_dump(mode="json", by_alias=True, exclude_none=True)}


def save_workspace(workspace: Workspace, replaced_url: str | None = None) -> str:
    """Save the view in W&B, in place of the one at the address `replaced_url` if given; returns its address.

    Raises LmmForgetError when W&B cannot be reached or refuses.
    """
    try:
        if replaced_url is None:
            workspace.save_as_new_view()
        else:
            existing = type(workspace).from_url(replaced_url)
            workspace._internal_name, workspace._internal_id = existing._internal_name, existing._internal_id
            workspace.save()
        return str(workspace.url)
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise LmmForgetError(
            f"the dashboard could not be saved in {workspace.entity}/{workspace.project}: {reason}"
        ) from error


def _describe_refusal(spec: DashboardSpec, error: ValueError) -> str:
    """Why the package refuses the view: a symbol in its name, or else the package's own message."""
    symbol = next((sign for sign in spec.name if unicodedata.category(sign)[0] == "S"), None)
    if symbol is not None:
        described_symbol = f"{symbol!r} (U+{ord(symbol):04X})"
        return (
            f"title={spec.name!r} holds the symbol {described_symbol}; W&B takes letters, digits, blanks and "
            "punctuation"
        )
    return f"W&B takes no such dashboard: {shorten_value(error, 300)}"


def _create_section(name: str, panels: Sequence[Any], *, columns: int) -> Any:
    from wandb_workspaces.workspaces import Section, SectionLayoutSettings  # optional, see build_workspace

    rows = max(1, min(3, -(-len(panels) // columns)))
    layout = SectionLayoutSettings(columns=columns, rows=rows)
    return Section(name=name, panels=list(panels), is_open=True, layout_settings=layout)


def _create_figure_panels() -> list[Any]:
    from wandb_workspaces.reports.v2 import BarPlot, Config, ScatterPlot, SummaryMetric  # optional

    learning, forgetting = (
        metric_names.format_figure_metric_name("target_learning"),
        metric_names.format_figure_metric_name("heldout_forgetting"),
    )
    bars = ((learning, "Target learning (points)"), (forgetting, "Held-out change at the end (points)"))
    return [
        ScatterPlot(
            title="Learning against held-out change (top right is best)",
            x=SummaryMetric(learning),
            y=SummaryMetric(forgetting),
        ),
        *(
            BarPlot(
                title=title,
                metrics=[name],
                groupby=Config(RECIPE_FIELD),
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
            )
            for name, title in bars
        ),
    ]


def _create_stage_panels() -> list[Any]:
    return [
        _create_stage_line_plot(metric_names.HELDOUT_CHANGE, "Held-out change since the base (points)"),
        _create_stage_line_plot(metric_names.HELDOUT_MEAN, "Held-out mean (points)"),
        _create_stage_line_plot(metric_names.STAGE_LEARNING, "What each stage learned (points)"),
        _create_stage_line_plot(metric_names.TARGETS_MEAN, "Mean of all skills (points)"),
    ]


def _create_probe_panels() -> list[Any]:
    curves = (
        ("number_mass", "Probability mass of number tokens"),
        ("kl", "KL to the base, next token (nats)"),
        ("agreement", "Same best token as the base"),
        ("norm/(attention|mlp)", "Change in logits per block (mean over layers)"),
    )
    return [
        _create_line_plot(title, x=metric_names.STAGE_AXIS, groupby=True, metric_regex=f"^probe/.*/{tail}$")
        for tail, title in curves
    ]


def _create_training_panels() -> list[Any]:
    curves = {
        metric_names.LOSS: "Loss",
        metric_names.LEARNING_RATE: "Learning rate",
        metric_names.GRAD_NORM: "Gradient norm",
        metric_names.SAMPLES_PER_S: "Samples per second",
    }
    return [_create_line_plot(title, x=metric_names.GLOBAL_STEP_AXIS, y=[name]) for name, title in curves.items()]


def _create_stage_line_plot(metric: str, title: str) -> Any:
    return _create_line_plot(title, x=metric_names.STAGE_AXIS, y=[metric], groupby=True)


def _create_line_plot(title: str, *, x: str, groupby: bool = False, **options: Any) -> Any:
    from wandb_workspaces.reports.v2 import Config, LinePlot  # optional, see build_workspace

    if groupby:
        options |= {"groupby": Config(RECIPE_FIELD), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    return LinePlot(title=title, x=x, **options)


def _make_deterministic(workspace: Workspace) -> None:
    """Replace the random ids that the package generates."""
    workspace._internal_name, workspace._internal_runset_id = "view", "runs"
    for number, section in enumerate(workspace.sections):
        section._id = f"section{number}"
        for place, panel in enumerate(section.panels):
            setattr(panel, "_id", f"panel{number}-{place}")  # noqa: B010
