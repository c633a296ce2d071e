"""The W&B view of a project as code: what it shows is built here, offline; only saving it needs the network."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import ConfigError, LmmForgetError, brief
from lmm_forget.tracking import names

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

RECIPE = "recipe.name"
"""Field of a run's configuration that panels group by."""
COLUMNS = (
    f"config:{RECIPE}",
    f"summary:{names.figure('target_learning')}",
    f"summary:{names.figure('target_forgetting')}",
    f"summary:{names.figure('heldout_forgetting')}",
    f"summary:{names.STATE}",
)


@dataclass(frozen=True)
class Wanted:
    """What a dashboard is for: where it is saved, and the tasks it has panels for. `sweep` shows that one only."""

    entity: str
    project: str
    targets: tuple[str, ...]
    suite: tuple[str, ...]
    name: str = "Learning and forgetting"
    sweep: str | None = None


def build(wanted: Wanted) -> Workspace:
    """The view, ready to be saved; the same every time.

    Raises ConfigError without the package for it, and for what that package refuses.
    """
    try:
        import wandb_workspaces.reports.v2 as blocks
        import wandb_workspaces.workspaces as parts
        from wandb_workspaces import expr
    except ImportError:
        raise ConfigError(
            "dashboards need the package wandb-workspaces: pip install 'lmm-forget[dashboard]'"
        ) from None
    sections = [
        _section("Learning against forgetting", _figures(), columns=3),
        _section("Held-out abilities per stage", _stages(), columns=2),
        _section("Benchmarks", [_per_stage(names.score(task), task) for task in wanted.suite], columns=4),
        _section("Skills", [_per_stage(names.score(task), task) for task in wanted.targets], columns=4),
        _section("Probes", _probes(), columns=2),
        _section("Answers", [blocks.WeavePanelSummaryTable(table_name=names.ANSWERS)], columns=1),
        _section("Training", _training(), columns=2),
        _section("Runs side by side", [blocks.RunComparer(diff_only="split")], columns=1),
    ]
    runs = parts.RunsetSettings(pinned_columns=["run:displayName", *COLUMNS])
    if wanted.sweep is not None:
        runs = parts.RunsetSettings(
            pinned_columns=["run:displayName", *COLUMNS], filters=[expr.Metric("Group") == wanted.sweep]
        )
    try:
        view = parts.Workspace(
            entity=wanted.entity,
            project=wanted.project,
            name=wanted.name,
            sections=sections,
            settings=parts.WorkspaceSettings(x_axis=names.STAGE, max_runs=100),
            runset_settings=runs,
        )
    except ValueError as error:  # the package checks what it is given, and tells it in four lines
        raise ConfigError(_refused(wanted, error)) from error
    _same_every_time(view)
    return view


def as_json(view: Workspace) -> dict[str, Any]:
    """The view as W&B stores it: entity, project, displayName and spec."""
    model = view._to_model()
    kept = {"entity": model.entity, "project": model.project, "displayName": model.display_name}
    return {**kept, "spec": model.spec.model_dump(mode="json", by_alias=True, exclude_none=True)}


def save(view: Workspace, over: str | None = None) -> str:
    """Save the view in W&B, in place of the one at the address `over` if given; returns its address.

    Raises LmmForgetError when W&B cannot be reached or refuses.
    """
    try:
        if over is None:
            view.save_as_new_view()
        else:
            found = type(view).from_url(over)
            view._internal_name, view._internal_id = found._internal_name, found._internal_id
            view.save()
        return str(view.url)
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise LmmForgetError(
            f"the dashboard could not be saved in {view.entity}/{view.project}: {reason}"
        ) from error


def _refused(wanted: Wanted, error: ValueError) -> str:
    """Why the package takes no view of this kind: its one rule of its own is that a name holds no symbols."""
    odd = next((sign for sign in wanted.name if unicodedata.category(sign)[0] == "S"), None)
    if odd is not None:
        what = f"{odd!r} (U+{ord(odd):04X})"
        return f"title={wanted.name!r} holds the symbol {what}; W&B takes letters, digits, blanks and punctuation"
    return f"W&B takes no such dashboard: {brief(error, 300)}"


def _section(name: str, panels: Sequence[Any], *, columns: int) -> Any:
    from wandb_workspaces.workspaces import Section, SectionLayoutSettings

    rows = max(1, min(3, -(-len(panels) // columns)))
    layout = SectionLayoutSettings(columns=columns, rows=rows)
    return Section(name=name, panels=list(panels), is_open=True, layout_settings=layout)


def _figures() -> list[Any]:
    from wandb_workspaces.reports.v2 import BarPlot, Config, ScatterPlot, SummaryMetric

    learning, forgetting = names.figure("target_learning"), names.figure("heldout_forgetting")
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
                groupby=Config(RECIPE),
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
            )
            for name, title in bars
        ),
    ]


def _stages() -> list[Any]:
    return [
        _per_stage(names.HELDOUT_CHANGE, "Held-out change since the base (points)"),
        _per_stage(names.HELDOUT, "Held-out mean (points)"),
        _per_stage("taught/learning", "What each stage learned (points)"),
        _per_stage(names.TARGETS, "Mean of all skills (points)"),
    ]


def _probes() -> list[Any]:
    curves = (
        ("number_mass", "Probability mass of number tokens"),
        ("kl", "KL to the base, next token (nats)"),
        ("agreement", "Same best token as the base"),
        ("norm/(attention|mlp)", "Change in logits per block (mean over layers)"),
    )
    return [
        _line(title, x=names.STAGE, groupby=True, metric_regex=f"^probe/.*/{tail}$") for tail, title in curves
    ]


def _training() -> list[Any]:
    curves = {
        names.LOSS: "Loss",
        names.LEARNING_RATE: "Learning rate",
        names.GRAD_NORM: "Gradient norm",
        names.SAMPLES_PER_S: "Samples per second",
    }
    return [_line(title, x=names.GLOBAL_STEP, y=[name]) for name, title in curves.items()]


def _per_stage(metric: str, title: str) -> Any:
    return _line(title, x=names.STAGE, y=[metric], groupby=True)


def _line(title: str, *, x: str, groupby: bool = False, **more: Any) -> Any:
    from wandb_workspaces.reports.v2 import Config, LinePlot

    if groupby:
        more |= {"groupby": Config(RECIPE), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    return LinePlot(title=title, x=x, **more)


def _same_every_time(view: Workspace) -> None:
    """Replace the names that the package draws by lot."""
    view._internal_name, view._internal_runset_id = "view", "runs"
    for number, section in enumerate(view.sections):
        section._id = f"section{number}"
        for place, panel in enumerate(section.panels):
            setattr(panel, "_id", f"panel{number}-{place}")  # noqa: B010
