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
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import walk_tb
from typing import Any, NoReturn

from lmm_forget.cli.parser import options_first, run_command
from lmm_forget.distributed.process_group import Place
from lmm_forget.errors import ConfigError, LaunchError, LmmForgetError, format_os_error

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
IN_PROCESS = (
    "{what} with hydra/launcher=basic would mix grid points; use hydra/launcher=isolated, the default: "
    "python -m lmm_forget.run -m {words}"
)
LAUNCHED_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0, 1 (a job failed), 2 (nothing was started) or 130 (stopped)."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us whole; we make one line of them
    return run_command(_main, arguments)


def _main(words: list[str]) -> int:
    try:
        return _run(options_first(words))
    except LmmForgetError:
        from lmm_forget.launch.torchrun import let_the_first_speak

        let_the_first_speak(os.environ)
        raise


def _run(given: list[str]) -> int:
    from hydra._internal.utils import get_args_parser

    from lmm_forget.config import one_line
    from lmm_forget.config.overrides import checked
    from lmm_forget.launch.scratch import carry

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
    if args.package and not args.cfg:
        raise ConfigError("--package belongs to --cfg job")
    place = None
    if not shows:
        _check_launch(args, os.environ)
        place = Place.read(os.environ)
    options, words = given[: len(given) - len(args.overrides)], list(args.overrides)
    if place is not None:
        from lmm_forget.launch.torchrun import world_overrides

        words += world_overrides(place, args.overrides)
    given = [*options, *checked(words, [Path(args.config_dir)] if args.config_dir else [])]
    with TemporaryDirectory() as scratch:  # Hydra writes down a sweep's grid before it is known to be run
        try:
            return _hydra(given, args, place, Path(scratch))
        except LmmForgetError:
            raise
        except Exception as error:
            if _is_ours(error):
                raise
            raise ConfigError(one_line(error, args.overrides, args.config_dir)) from error
        finally:
            carry(Path(scratch))


def _is_ours(error: BaseException) -> bool:
    """Whether this package's own code broke, behind Hydra's, and not Hydra's on what it was given.

    Hydra checks little of what it composes: a wrong word can end in an error of any kind.
    """
    frames = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    hydra = [place for place, name in enumerate(frames) if "/hydra/" in name.replace(os.sep, "/")]
    package = str(Path(__file__).parent)
    return not hydra or any(name.startswith(package) for name in frames[hydra[0] :])


def _hydra(given: Sequence[str], args: argparse.Namespace, place: Place | None, scratch: Path) -> int:
    """Hand the command line to Hydra, with our task function; the exit code. `place` is for one of several ranks.

    `scratch` is where Hydra writes about a sweep.
    """
    import hydra

    from lmm_forget.config.composing import VERSION_BASE, conf_dir, register_resolvers
    from lmm_forget.config.hydra_keys import Refused
    from lmm_forget.launch.planning import Planned
    from lmm_forget.launch.processes import Stopped

    register_resolvers(scratch)
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
            failures.append(LaunchError(format_os_error(error)))
            return None

    before, showwarning = sys.argv, warnings.showwarning
    sys.argv = [before[0], *given]
    warnings.showwarning = _note
    try:
        hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name="run")(task)()
    except Refused as refused:
        raise refused.error from None
    except Planned:
        return 0
    except Stopped as stop:
        line = str(stop) or "stopped; the same command goes on where it ended"
        print(f"lmm-forget: {line}", file=sys.stderr)
        return 130
    finally:
        sys.argv, warnings.showwarning = before, showwarning
    if failures:
        raise failures[0]
    return codes[0] if codes else 0


def _note(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning of Hydra's as one line, without the line of its source."""
    print(f"lmm-forget: note: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


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
    from lmm_forget.launch.scratch import accept
    from lmm_forget.launch.session import GRACE, complain, run_jobs, show_summary

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
    target = str(launcher.pop("_target_"))

    def accepted() -> None:
        if whole.hydra.mode == RunMode.MULTIRUN:
            accept(Path(whole.hydra.sweep.dir), job.folder.parent)

    if target.endswith(".SlurmLauncher"):
        from lmm_forget.launch.slurm.settings import Settings
        from lmm_forget.launch.slurm.watch import run_in_slurm

        settings = Settings.read({str(key): value for key, value in launcher.items()})
        outcomes = run_in_slurm([job], settings, accepted)
    else:
        outcomes = run_jobs([job], float(launcher.get("grace", GRACE)), accepted)
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
