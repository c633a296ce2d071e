"""`lmm-forget data`: check a task's data, or download what it links to, before anything is trained."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.cli.command import CONFIG_DIR, Action, Arguments, Command, Option
from lmm_forget.errors import ConfigError, DataError, shorten_value

if TYPE_CHECKING:
    from lmm_forget.tasks.task import Task


def _check_or_prepare(arguments: Arguments) -> int:
    options = {name: values[0] for name, values in arguments.options.items() if not name.startswith("--")}
    changes, config_dir = arguments.overrides, arguments.get("--config-dir")
    if "task" not in options:
        raise ConfigError(f"{arguments.action} needs task=NAME")
    task = _build_task(options, changes, config_dir)
    if arguments.action == "prepare":
        try:
            return _run_prepare(task, options, arguments.output_format)
        except KeyboardInterrupt:
            print("stopped; the same command goes on where this one stopped", file=sys.stderr)
            return 130
    return _run_check(task, options, changes, config_dir, arguments.output_format)


def _build_task(options: Mapping[str, str], changes: Sequence[str], config_dir: str | None) -> Task:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from lmm_forget.config import find_conf_dir, format_config_error
    from lmm_forget.config.overrides import check_overrides
    from lmm_forget.config.task_files import TaskFileFinder
    from lmm_forget.tasks.task_loading import build_task

    check_overrides((), [] if config_dir is None else [Path(config_dir)])
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"the configuration folder {config_dir} does not exist")
    folders = ([] if config_dir is None else [Path(config_dir)]) + [find_conf_dir()]
    file = TaskFileFinder(folders, "real").load_task_file(options["task"])
    task_changes = [item.removeprefix("task.") for item in changes if item.startswith("task.")]
    try:
        node = OmegaConf.merge(file.node, *map(_parse_change, task_changes))
        missing = sorted(OmegaConf.missing_keys(node))
        if missing:
            raise ConfigError(f"task {file.name}: {missing[0]} is not set; give task.{missing[0]}=… ({file.path.name})")
        return build_task(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ConfigError(format_config_error(error)) from error


def _parse_change(text: str) -> Any:
    """A change to the task's YAML as a node. Raises ConfigError for a value that is no YAML."""
    import yaml
    from omegaconf import OmegaConf

    try:
        return OmegaConf.from_dotlist([text])
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = getattr(error, "problem", None) or "it refers to itself or is nested too deeply"
        raise ConfigError(
            f"cannot read 'task.{shorten_value(text)}': {shorten_value(reason, 200)}; quote lists and commas"
        ) from error


def _run_check(
    task: Task, options: Mapping[str, str], changes: Sequence[str], config_dir: str | None, output_format: str
) -> int:
    from lmm_forget.data.contact_sheet import draw_contact_sheet
    from lmm_forget.data.inspection import build_data_report, inspect_splits

    limit = _parse_whole_number(options, "samples", None)
    sheet = options.get("sheet", f"{task.name}.png")
    if sheet != "none":
        _check_sheet_path(Path(sheet))
    count_tokens, context_length = None, 0
    if "model" in options:
        from lmm_forget.data.token_counter import make_token_counter

        count_tokens, context_length = make_token_counter(_load_model_config(options["model"], changes, config_dir))
    with _ProgressCounter("reading") as advance:
        summaries, missing_splits = inspect_splits(
            task, limit=limit, count_tokens=count_tokens, context_length=context_length, on_progress=advance
        )
    if not summaries:
        raise DataError(missing_splits["train"] if task.role == "target" else missing_splits["test"])
    report = build_data_report(task, summaries, missing_splits)
    if count_tokens is not None:
        report["context"] = {"model": options["model"], "tokens": context_length}
    report["sheet"] = None
    if sheet != "none":
        report["sheet"] = str(
            draw_contact_sheet(task, {part.split: part.preview_samples for part in summaries}, Path(sheet))
        )
    if output_format == "json":
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        from lmm_forget.data.terminal_report import print_data_report

        print_data_report(report)
    return 1 if report["problems"] else 0


def _check_sheet_path(path: Path) -> None:
    """Raise ConfigError, before anything is read, where no contact sheet can be written."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ConfigError(f"sheet={path} must be a file that ends in .png, or none")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        usable = os.access(path if path.exists() else path.parent, os.W_OK)
    except OSError:
        usable = False
    if not usable:
        raise ConfigError(f"sheet={path} cannot be written; name another file, or sheet=none")


def _run_prepare(task: Task, options: Mapping[str, str], output_format: str) -> int:
    from lmm_forget.data.pixmo_preparation import prepare_task_images

    if "out" not in options:
        raise ConfigError("prepare needs out=DIR")
    with _ProgressCounter("downloading") as advance:
        report = prepare_task_images(
            task,
            Path(options["out"]).expanduser(),
            source=options.get("source"),
            max_per_second=_parse_positive_number(options, "rate", 20.0),
            num_workers=_parse_whole_number(options, "workers", 8) or 8,
            max_retries=_parse_whole_number(options, "retries", 4, minimum=0) or 0,
            timeout=_parse_positive_number(options, "timeout", 30.0),
            max_rows_per_split=_parse_whole_number(options, "samples", None),
            retry_gone=options.get("retry_gone") == "true",
            on_start=advance.set_total,
            on_progress=lambda _: advance(1),
        )
    if output_format == "json":
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        from lmm_forget.data.terminal_report import print_prepare_report

        print_prepare_report(report, options["out"], task.name)
    return 0


def _load_model_config(name: str, changes: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from lmm_forget.config import compose_config

    model_changes = [item for item in changes if item.startswith("model.")]
    node = OmegaConf.to_container(compose_config([f"model={name}", *model_changes], config_dir).model, resolve=True)
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def _parse_whole_number(options: Mapping[str, str], key: str, default: int | None, minimum: int = 1) -> int | None:
    if key not in options:
        return default
    text = options[key]
    if not text.isdecimal() or int(text) < minimum:
        raise ConfigError(f"{key}={text} must be a whole number of at least {minimum}")
    return int(text)


def _parse_positive_number(options: Mapping[str, str], key: str, default: float) -> float:
    try:
        value = float(options.get(key, default))
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{key}={options[key]} must be a number above 0")
    return value


class _ProgressCounter:
    """A count on the error stream while work goes on; nothing where that is no terminal."""

    def __init__(self, description: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, disable=not console.is_terminal, transient=True)
        self._row = self._bar.add_task(description, total=None)

    def set_total(self, total: int) -> None:
        """How many there will be."""
        self._bar.update(self._row, total=total)

    def __call__(self, n: int) -> None:
        self._bar.advance(self._row, n)

    def __enter__(self) -> _ProgressCounter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


COMMAND = Command(
    name="data",
    summary="check a task's data, or download what it links to",
    run=_check_or_prepare,
    usage="ACTION task=NAME [task.KEY=VALUE ...] [model.KEY=VALUE ...]",
    actions=(
        Action(
            "check",
            "task=NAME",
            "read all of a task: counts, answers, unusable samples, pictures in both train and test, samples that do "
            "not fit a model's context; writes a contact sheet",
        ),
        Action(
            "prepare",
            "task=pixmocount out=DIR",
            "download the pictures that PixMo-Count links to; can be stopped and started again at any time",
        ),
    ),
    options=(
        Option("task", "NAME", "a YAML of conf/task (tiny_cub200, textvqa, …) or of --config-dir", group="task"),
        Option("model", "NAME", "also count tokens with this model's processor", actions=("check",), group="model"),
        Option(
            "sheet", "FILE.png", "where the contact sheet goes (default NAME.png; none: no sheet)", actions=("check",)
        ),
        Option("samples", "N", "at most this many of each split"),
        Option("out", "DIR", "where the pictures go", actions=("prepare",)),
        Option("source", "PATH", "a local copy of allenai/pixmo-count", actions=("prepare",)),
        Option("rate", "20", "requests per second", actions=("prepare",)),
        Option("workers", "8", "downloads side by side", actions=("prepare",)),
        Option("retries", "4", "attempts for each picture after the first one", actions=("prepare",)),
        Option("timeout", "30", "seconds for each picture", actions=("prepare",)),
        Option("retry_gone", "BOOL", "request again what was gone", choices=("true", "false"), actions=("prepare",)),
        CONFIG_DIR,
    ),
    formats=("table", "json"),
    override_prefixes=("task.", "model."),
    notes="task.KEY=VALUE changes the task's YAML, e.g. task.path=FOLDER.",
    examples=(
        "lmm-forget data check task=tiny_pixmocount model=tiny_onevision",
        "lmm-forget data check task=my_skill --config-dir mine sheet=my_skill.png",
        "lmm-forget data check task=ai2d task.path=copies/ai2d format=json",
        "lmm-forget data prepare task=pixmocount out=data/pixmocount",
    ),
    exit_codes={0: "nothing to look at", 1: "check found problems", 2: "a mistake in what was asked for"},
)
main = COMMAND.main
