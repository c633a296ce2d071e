"""The front door: compose a configuration, run it as one job or as a sweep of jobs, print what came out.

    python -m lmm_forget.run recipe=mlp_gateup
    python -m lmm_forget.run -m recipe=sa_proj,mlp_gateup seed=0,1

Nothing here imports torch: every job runs in a process of its own, started from its resolved job.yaml. Only where
torchrun has started one process per device does the job run in these processes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from lmm_forget.command import run_command, told
from lmm_forget.errors import ConfigError, LaunchError, LmmForgetError
from lmm_forget.ranks import Place

HELP = """\
Teach a large multimodal model new skills one after another, and measure what it learned and what it forgot.

usage: python -m lmm_forget.run [-m] [--config-dir DIR] [group=choice ...] [key=value ...]

  -m                   a sweep: every combination of the comma-separated values, each in a process of its own
  --config-dir DIR     a folder of your own YAMLs with the same groups, e.g. DIR/task/mine.yaml
  --cfg job --resolve  print the configuration instead of running it
  --help               this text

examples:
  python -m lmm_forget.run experiment=smoke
  python -m lmm_forget.run recipe=mlp_gateup training.max_steps=100 seed=1
  python -m lmm_forget.run -m recipe=sa_proj,mlp_gateup,llm
  python -m lmm_forget.run -m recipe=sa_proj,mlp_gateup sequence=order 'sequence.order=range(0,120)'
  python -m lmm_forget.run --config-dir mine sequence=single sequence.task=my_skill
  python -m lmm_forget.run -m recipe=sa_proj,llm hardware=ddp hardware.devices=4
  torchrun --nproc_per_node 8 -m lmm_forget.run recipe=llm hardware=fsdp

groups and their choices:
{groups}

Results: multirun/<name>/<job>/results.json, and multirun/<name>/summary.html over all jobs of a name. The same
command again does only what is missing. Every key is explained where it stands: {conf}
"""
GROUPS = (
    "model",
    "recipe",
    "sequence",
    "suite",
    "training",
    "data",
    "probe",
    "hardware",
    "logger",
    "experiment",
    "task",
)
TAKE_A_VALUE = (
    "--config-dir",
    "-cd",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--cfg",
    "-c",
    "--package",
    "-p",
)
IN_PROCESS = (
    "{what} with hydra/launcher=basic would mix grid points; use hydra/launcher=isolated, the default: "
    "python -m lmm_forget.run -m {words}"
)
LAUNCHED_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0, 1 (a job failed), 2 (nothing was started) or 130 (stopped)."""
    given = options_first(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us whole; we make one line of them
    return run_command(_main, given)


def options_first(arguments: Sequence[str]) -> list[str]:
    """The same command line, options before overrides: Hydra's parser refuses `a=b --config-dir mine`."""
    options: list[str] = []
    overrides: list[str] = []
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            overrides.append(word)
            continue
        options.append(word)
        if word in TAKE_A_VALUE:
            options.extend(value for value in (next(words, None),) if value is not None)
    return [*options, *overrides]


def _main(given: list[str]) -> int:
    try:
        return _run(given)
    except LmmForgetError:
        from lmm_forget.launch.torchrun import let_the_first_speak

        let_the_first_speak(os.environ)
        raise


def _run(given: list[str]) -> int:
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from lmm_forget.config import one_line
    from lmm_forget.config.overrides import checked

    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign,assignment]
    args = parser.parse_args(given)
    if args.help:
        print(help_text([Path(args.config_dir)] if args.config_dir else []))
        return 0
    shows = bool(args.cfg or args.info or args.shell_completion or args.hydra_help)
    if args.multirun and (shows or args.run):
        raise ConfigError("-m starts a sweep; leave it out to look at one configuration")
    if args.experimental_rerun:
        raise ConfigError("--experimental-rerun is not supported; a job is run again from its job.yaml")
    if args.resolve and not args.cfg:
        raise ConfigError("--resolve belongs to --cfg job")
    place = None
    if not shows:
        _check_launch(args, os.environ)
        place = Place.read(os.environ)
    if place is not None:
        from lmm_forget.launch.torchrun import world_overrides

        given = [*given, *world_overrides(place, args.overrides)]
    given = checked(given, [Path(args.config_dir)] if args.config_dir else [])
    try:
        if not _only_plans(args):
            return _hydra(given, args, place)
        with TemporaryDirectory() as scratch:  # Hydra writes down a sweep's grid before it is known to be run
            return _hydra([*given, f"hydra.sweep.dir={scratch}"], args, place)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(one_line(error, args.overrides, args.config_dir)) from error


def _only_plans(args: argparse.Namespace) -> bool:
    said = {word.lstrip("+").partition("=")[0]: word.partition("=")[2].lower() for word in args.overrides}
    return args.multirun and said.get("sweep.plan") == "true" and "hydra.sweep.dir" not in said


def _hydra(given: Sequence[str], args: argparse.Namespace, place: Place | None) -> int:
    """Hand the command line to Hydra, with our task function; the exit code. `place` is for one of several ranks."""
    import hydra

    from lmm_forget.config.composing import VERSION_BASE, conf_dir, register_resolvers
    from lmm_forget.launch.planning import Planned
    from lmm_forget.launch.processes import Stopped

    register_resolvers()
    failures: list[Exception] = []
    codes: list[int] = []

    def task(cfg: Any) -> float | None:
        # What Hydra would print of an exception, it cannot print of a value.
        try:
            if place is not None:
                codes.append(_rank(cfg, place))
                return None
            return _single(cfg, args)
        except LmmForgetError as error:
            failures.append(error)
            return None
        except OSError as error:
            failures.append(LaunchError(told(error)))
            return None

    before = sys.argv
    sys.argv = [before[0], *given]
    try:
        hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name="run")(task)()
    except Planned:
        return 0
    except Stopped as stop:
        line = str(stop) or "stopped; the same command goes on where it ended"
        print(f"lmm-forget: {line}", file=sys.stderr)
        return 130
    finally:
        sys.argv = before
    if failures:
        raise failures[0]
    return codes[0] if codes else 0


def _rank(cfg: Any, place: Place) -> int:
    """Run the composed configuration as one of the processes that torchrun started; the exit code."""
    from lmm_forget.config import resolve, single_name
    from lmm_forget.launch.jobs import make_job
    from lmm_forget.launch.torchrun import run_as_rank

    config = resolve(_with_hydra(cfg))
    return run_as_rank(make_job(config, single_name(config)), place)


def _with_hydra(cfg: Any) -> Any:
    """The configuration with Hydra's own node, which Hydra takes out of what it hands to a task."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    whole = OmegaConf.masked_copy(cfg, [str(key) for key in cfg])
    with open_dict(whole):
        whole.hydra = HydraConfig.get()
    return whole


def _single(cfg: Any, args: argparse.Namespace) -> float | None:
    """Run the composed configuration as one job; returns its objective. Raises LmmForgetError."""
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from lmm_forget.config import resolve, single_name, slug, swept
    from lmm_forget.launch.isolated import given_overrides
    from lmm_forget.launch.jobs import make_job
    from lmm_forget.launch.session import complain, run_jobs, show_summary

    whole = _with_hydra(cfg)
    config = resolve(whole)
    name = single_name(config)
    grid = OmegaConf.to_container(whole.hydra.sweeper.get("params") or OmegaConf.create({}))
    if grid and whole.hydra.mode == RunMode.RUN:
        what = ", ".join(map(str, grid))
        print(
            f"lmm-forget: note: experiment={whole.hydra.runtime.choices.experiment} is a sweep over {what}; this is "
            "one job of it, add -m for all",
            file=sys.stderr,
        )
    if (
        whole.hydra.mode == RunMode.MULTIRUN
        and config["hardware"]["devices"] * config["hardware"]["nodes"] > 1
    ):
        raise LaunchError(IN_PROCESS.format(what="several devices", words=" ".join(_without_launcher(args))))
    if whole.hydra.mode == RunMode.MULTIRUN:  # Hydra's own launcher, which calls this once per grid point
        given = [
            *given_overrides(
                OmegaConf.create({"hydra": {**whole.hydra, "overrides": {"task": args.overrides}}})
            )
        ]
        choices = swept([str(item) for item in whole.hydra.overrides.task], given)
        name = slug(choices, [str(key) for key in whole.hydra.runtime.choices]) or name
    job = make_job(config, name)
    launcher = OmegaConf.to_container(whole.hydra.launcher, resolve=True)
    assert isinstance(launcher, dict)
    if str(launcher.pop("_target_")).endswith("SlurmLauncher"):
        from lmm_forget.launch.slurm.settings import Settings
        from lmm_forget.launch.slurm.watch import run_in_slurm

        outcomes = run_in_slurm([job], Settings.read({str(key): value for key, value in launcher.items()}))
    else:
        outcomes = run_jobs([job])
    error = complain(outcomes)
    if error is not None:
        raise error
    show_summary(job.folder.parent)
    return job.objective()


def _check_launch(args: argparse.Namespace, env: Mapping[str, str]) -> None:
    """Refuse what would train a mixture of grid points. Raises LaunchError or ConfigError."""
    found = [key for key in LAUNCHED_BY_TORCHRUN if key in env]
    if args.multirun and found:
        raise LaunchError(
            f"-m under torchrun ({', '.join(found)} set) would run every job on every rank; start it with plain "
            f"python -m lmm_forget.run -m {' '.join(args.overrides)}"
        )
    if args.multirun and any(
        text.replace("override ", "") == "hydra/launcher=basic" for text in args.overrides
    ):
        for text in args.overrides:
            key, _, value = text.lstrip("+").partition("=")
            if key in ("hardware.devices", "hardware.nodes") and value != "1":
                raise LaunchError(IN_PROCESS.format(what=text, words=" ".join(_without_launcher(args))))


def _without_launcher(args: argparse.Namespace) -> list[str]:
    return [word for word in args.overrides if "hydra/launcher" not in word]


def help_text(folders: Sequence[Path] = ()) -> str:
    """What `--help` prints; `folders` are the user's own, whose choices are listed too."""
    import textwrap

    from lmm_forget.config import choices, conf_dir

    lines = []
    for group in GROUPS:
        names = ", ".join(choices(group, folders)) or "-"
        lines += textwrap.wrap(names, 110, initial_indent=f"  {group:<11}", subsequent_indent=" " * 13)
    return HELP.format(groups="\n".join(lines), conf=conf_dir())


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}; see python -m lmm_forget.run --help")


if __name__ == "__main__":
    sys.exit(main())
