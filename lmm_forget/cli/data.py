"""`lmm-forget data`: look at a task's data, or fetch what it links to, before anything is trained."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.cli.parser import Parser, run_command, take_format
from lmm_forget.errors import ConfigError, DataError, brief

if TYPE_CHECKING:
    from lmm_forget.tasks.base import Task

EXAMPLES = """\
check    read all of a task: counts, answers, unusable samples, pictures in both train and test, samples that do not
         fit a model's context; writes a contact sheet. Exit code 1 when something should be looked at.
           task=NAME               a YAML of conf/task (tiny_cub200, textvqa, …) or of --config-dir
           task.KEY=VALUE          a change to it, e.g. task.path=FOLDER
           model=NAME              also count tokens with this model's processor
           samples=N               at most so many of each split
           sheet=FILE.png          where the contact sheet goes (default NAME.png; none: no sheet)
prepare  download the pictures that PixMo-Count links to; can be stopped and started again at any time.
           task=pixmocount  out=DIR
           rate=20                 requests per second         workers=8   side by side
           retries=4  timeout=30   per picture                 samples=N   only the first rows of each split
           retry_gone=true         ask again for what was gone
           source=PATH             a local copy of allenai/pixmo-count
both     format=table|json

examples:
  lmm-forget data check task=tiny_pixmocount model=tiny_onevision
  lmm-forget data check task=my_skill --config-dir mine sheet=my_skill.png
  lmm-forget data check task=ai2d task.path=copies/ai2d format=json
  lmm-forget data prepare task=pixmocount out=data/pixmocount
"""
OPTIONS = {
    "check": ("task", "model", "samples", "sheet"),
    "prepare": (
        "task",
        "out",
        "source",
        "rate",
        "workers",
        "retries",
        "timeout",
        "samples",
        "retry_gone",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what `argv` (default: the command line) asks; returns the exit code: 0, 1 (problems found) or 2."""
    return run_command(_data, argv)


def _data(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="lmm-forget data",
        description="Look at a task's data, or fetch what it links to, before anything is trained.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=tuple(OPTIONS))
    parser.add_argument("choices", nargs="*", metavar="key=value", help="see below")
    parser.add_argument(
        "--config-dir", "-cd", metavar="DIR", help="a folder with task YAMLs of your own (DIR/task/mine.yaml)"
    )
    given = parser.read(arguments)
    form, choices = take_format(given.choices)
    options, changes = _sorted(choices, given.action)
    task = _task(options, changes, given.config_dir)
    if given.action == "prepare":
        try:
            return _prepare(task, options, form)
        except KeyboardInterrupt:
            print("stopped; the same command goes on where this one stopped", file=sys.stderr)
            return 130
    return _check(task, options, changes, given.config_dir, form)


def _sorted(choices: Sequence[str], action: str) -> tuple[dict[str, str], list[str]]:
    """The command's own options, and changes to the task's YAML."""
    from lmm_forget.config.messages import closest

    options: dict[str, str] = {}
    changes: list[str] = []
    for item in choices:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{item!r} is not key=value")
        if key.startswith(("task.", "model.")):
            changes.append(item)
        elif key in OPTIONS[action]:
            options[key] = value
        else:
            known = (*OPTIONS[action], "format")
            raise ConfigError(
                f"{action} has no option {key!r}; it has {', '.join(known)}{closest(key, known)}"
            )
    if "task" not in options:
        raise ConfigError(f"{action} needs task=NAME")
    return options, changes


def _task(options: Mapping[str, str], changes: Sequence[str], config_dir: str | None) -> Task:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from lmm_forget.config import conf_dir, one_line
    from lmm_forget.config.overrides import checked
    from lmm_forget.config.tasks import TaskFiles
    from lmm_forget.tasks.loading import build_task

    checked((), [] if config_dir is None else [Path(config_dir)])
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"the configuration folder {config_dir} does not exist")
    folders = ([] if config_dir is None else [Path(config_dir)]) + [conf_dir()]
    file = TaskFiles(folders, "real").load(options["task"])
    mine = [item.removeprefix("task.") for item in changes if item.startswith("task.")]
    try:
        node = OmegaConf.merge(file.node, *map(_change, mine))
        missing = sorted(OmegaConf.missing_keys(node))
        if missing:
            raise ConfigError(
                f"task {file.name}: {missing[0]} is not set; give task.{missing[0]}=… ({file.path.name})"
            )
        return build_task(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error


def _change(text: str) -> Any:
    """A change to the task's YAML as a node. Raises ConfigError for a value that is no YAML."""
    import yaml
    from omegaconf import OmegaConf

    try:
        return OmegaConf.from_dotlist([text])
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = getattr(error, "problem", None) or "it refers to itself or is nested too deeply"
        raise ConfigError(
            f"cannot read 'task.{brief(text)}': {brief(why, 200)}; quote lists and commas"
        ) from error


def _check(
    task: Task, options: Mapping[str, str], changes: Sequence[str], config_dir: str | None, form: str
) -> int:
    from lmm_forget.data.report import read_all, summarise
    from lmm_forget.data.sheet import contact_sheet

    limit = _whole(options, "samples", None)
    sheet = options.get("sheet", f"{task.name}.png")
    if sheet != "none":
        _refuse_sheet(Path(sheet))
    measure, context = None, 0
    if "model" in options:
        from lmm_forget.data.context import measure_for

        measure, context = measure_for(_model(options["model"], changes, config_dir))
    with _progress("reading") as advance:
        parts, absent = read_all(task, limit=limit, measure=measure, context=context, advance=advance)
    if not parts:
        raise DataError(absent["train"] if task.role == "target" else absent["test"])
    report = summarise(task, parts, absent)
    if measure is not None:
        report["context"] = {"model": options["model"], "tokens": context}
    report["sheet"] = None
    if sheet != "none":
        report["sheet"] = str(contact_sheet(task, {part.split: part.shown for part in parts}, Path(sheet)))
    if form == "json":
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        from lmm_forget.data.show import show_check

        show_check(report)
    return 1 if report["problems"] else 0


def _refuse_sheet(path: Path) -> None:
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


def _prepare(task: Task, options: Mapping[str, str], form: str) -> int:
    from lmm_forget.data.prepare import prepare

    if "out" not in options:
        raise ConfigError("prepare needs out=DIR")
    for key in ("out", "source"):
        if key in options and not options[key].strip():
            raise ConfigError(f"{key}={options[key]!r} is blank; name a folder")
    if options.get("retry_gone", "false") not in ("true", "false"):
        raise ConfigError(f"retry_gone={options['retry_gone']} must be true or false")
    with _progress("downloading") as advance:
        report = prepare(
            task,
            Path(options["out"]).expanduser(),
            source=options.get("source"),
            rate=_number(options, "rate", 20.0),
            workers=_whole(options, "workers", 8) or 8,
            retries=_whole(options, "retries", 4, least=0) or 0,
            timeout=_number(options, "timeout", 30.0),
            samples=_whole(options, "samples", None),
            retry_gone=options.get("retry_gone") == "true",
            start=advance.start,
            advance=lambda _: advance(1),
        )
    if form == "json":
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        from lmm_forget.data.show import show_prepared

        show_prepared(report, options["out"], task.name)
    return 0


def _model(name: str, changes: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from lmm_forget.config import compose

    mine = [item for item in changes if item.startswith("model.")]
    node = OmegaConf.to_container(compose([f"model={name}", *mine], config_dir).model, resolve=True)
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def _whole(options: Mapping[str, str], key: str, default: int | None, least: int = 1) -> int | None:
    if key not in options:
        return default
    text = options[key]
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{key}={text} must be a whole number of at least {least}")
    return int(text)


def _number(options: Mapping[str, str], key: str, default: float) -> float:
    try:
        value = float(options.get(key, default))
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{key}={options[key]} must be a number above 0")
    return value


class _progress:
    """A count on the error stream while work goes on; nothing where that is no terminal."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, disable=not console.is_terminal, transient=True)
        self._row = self._bar.add_task(what, total=None)

    def start(self, total: int) -> None:
        """How many there will be."""
        self._bar.update(self._row, total=total)

    def __call__(self, n: int) -> None:
        self._bar.advance(self._row, n)

    def __enter__(self) -> _progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
