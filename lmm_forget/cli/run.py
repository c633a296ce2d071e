"""`lmm-forget run`: compose a configuration, run it as one job or as a sweep of jobs, print the results.

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

from lmm_forget.cli.command import CONFIG_DIR, Arguments, Command, Option
from lmm_forget.cli.hydra_options import OPTIONS_WITH_VALUE, move_options_first
from lmm_forget.distributed.process_group import RankInfo
from lmm_forget.errors import ConfigError, LaunchError, LmmForgetError, format_os_error

HELP_GROUPS = (
    "model",
    "recipe",
    "sequence",
    "suite",
    "training",
    "data",
    "probe",
    "hardware",
    "logger",
    "callbacks",
    "experiment",
    "task",
)
IN_PROCESS_MESSAGE = (
    "{what} with hydra/launcher=basic would mix grid points; use hydra/launcher=isolated, the default: "
    "python -m lmm_forget.run -m {words}"
)
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")


def _run_command_line(arguments: Arguments) -> int:
    """Run a command line; returns the exit code: 0, 1 (a job failed), 2 (nothing was started) or 130 (stopped)."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us whole; we make one line of them
    try:
        return _parse_and_run(move_options_first(arguments.words))
    except LmmForgetError:
        from lmm_forget.launch.torchrun import wait_for_rank_zero_error

        wait_for_rank_zero_error(os.environ)
        raise


def _parse_and_run(arguments: list[str]) -> int:
    from hydra._internal.utils import get_args_parser

    from lmm_forget.config import format_config_error
    from lmm_forget.config.overrides import check_overrides
    from lmm_forget.launch.hydra_output import copy_to_accepted_sweep

    parser = get_args_parser()
    parser.error = _raise_usage_error  # type: ignore[method-assign,assignment]
    args = parser.parse_args(arguments)
    is_display_only = bool(args.cfg or args.info or args.shell_completion or args.hydra_help)
    if args.multirun and (is_display_only or args.run):
        raise ConfigError("-m starts a sweep; leave it out to look at one configuration")
    if args.experimental_rerun:
        raise ConfigError("--experimental-rerun is not supported; a job is run again from its job.yaml")
    if args.resolve and not args.cfg:
        raise ConfigError("--resolve belongs to --cfg job")
    if args.package and not args.cfg:
        raise ConfigError("--package belongs to --cfg job")
    rank_info = None
    if not is_display_only:
        _check_torchrun_launch(args, os.environ)
        rank_info = RankInfo.from_environment(os.environ)
    options, words = arguments[: len(arguments) - len(args.overrides)], list(args.overrides)
    if rank_info is not None:
        from lmm_forget.launch.torchrun import build_world_size_overrides

        words += build_world_size_overrides(rank_info, args.overrides)
    arguments = [*options, *check_overrides(words, [Path(args.config_dir)] if args.config_dir else [])]
    with TemporaryDirectory() as scratch_dir:  # Hydra writes down a sweep's grid before it is known to be run
        try:
            return _run_hydra(arguments, args, rank_info, Path(scratch_dir))
        except LmmForgetError:
            raise
        except Exception as error:
            if _is_package_error(error):
                raise
            raise ConfigError(format_config_error(error, args.overrides, args.config_dir)) from error
        finally:
            copy_to_accepted_sweep(Path(scratch_dir))


def _is_package_error(error: BaseException) -> bool:
    """Whether this package's own code broke, behind Hydra's, and not Hydra's on what it was given.

    Hydra checks little of what it composes: a wrong word can end in an error of any kind.
    """
    frames = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    hydra_frames = [index for index, name in enumerate(frames) if "/hydra/" in name.replace(os.sep, "/")]
    package = str(Path(__file__).resolve().parents[1])
    return not hydra_frames or any(name.startswith(package) for name in frames[hydra_frames[0] :])


def _run_hydra(
    arguments: Sequence[str], args: argparse.Namespace, rank_info: RankInfo | None, scratch_dir: Path
) -> int:
    """Hand the command line to Hydra, with our task function; returns the exit code.

    `rank_info` is None unless torchrun started this process; Hydra writes about a sweep into `scratch_dir`.
    """
    import hydra

    from lmm_forget.config.conf_dirs import find_conf_dir
    from lmm_forget.config.hydra_composition import HYDRA_VERSION_BASE, register_resolvers
    from lmm_forget.config.hydra_settings import CallbackConfigError
    from lmm_forget.launch.outcomes import HydraRunEnded

    register_resolvers(scratch_dir)
    failures: list[Exception] = []
    codes: list[int] = []

    def run_composed_job(cfg: Any) -> float | None:
        # What Hydra would print of an exception, it cannot print of a value.
        try:
            if rank_info is not None:
                codes.append(_run_rank(cfg, rank_info))
                return None
            return _run_single_job(cfg, args)
        except LmmForgetError as error:
            failures.append(error)
            return None
        except OSError as error:
            failures.append(LaunchError(format_os_error(error)))
            return None

    saved_argv, showwarning = sys.argv, warnings.showwarning
    sys.argv = [saved_argv[0], *arguments]
    warnings.showwarning = _print_warning
    try:
        hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(find_conf_dir()), config_name="run")(
            run_composed_job
        )()
    except CallbackConfigError as refused:
        raise refused.error from None
    except HydraRunEnded as ended:
        if ended.result.message:
            print(f"lmm-forget: {ended.result.message}", file=sys.stderr)
        return ended.result.early_exit_code or 0
    finally:
        sys.argv, warnings.showwarning = saved_argv, showwarning
    if failures:
        raise failures[0]
    return codes[0] if codes else 0


def _print_warning(message: Warning | str, *location: Any, **options: Any) -> None:
    """Print a warning of Hydra's as one line, without the line of its source."""
    print(f"lmm-forget: note: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def _run_rank(cfg: Any, rank_info: RankInfo) -> int:
    """Run the composed configuration as one of the processes that torchrun started; the exit code."""
    from lmm_forget.config import build_single_job_name, resolve_config
    from lmm_forget.launch.job_folders import make_job
    from lmm_forget.launch.torchrun import run_job_on_rank

    config = resolve_config(_add_hydra_node(cfg))
    return run_job_on_rank(make_job(config, build_single_job_name(config)), rank_info)


def _add_hydra_node(cfg: Any) -> Any:
    """The configuration with Hydra's own node, which Hydra takes out of what it hands to a task."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    full_config = OmegaConf.masked_copy(cfg, [str(key) for key in cfg])
    with open_dict(full_config):
        full_config.hydra = HydraConfig.get()
    return full_config


def _run_single_job(cfg: Any, args: argparse.Namespace) -> float | None:
    """Run the composed configuration as one job; returns its objective. Raises LmmForgetError."""
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from lmm_forget.config import build_job_name, build_single_job_name, find_swept_choices, resolve_config
    from lmm_forget.launch.hydra_output import accept_sweep
    from lmm_forget.launch.job_folders import make_job
    from lmm_forget.launch.local import GRACE_SECONDS, print_job_failures, run_jobs, write_and_print_summary
    from lmm_forget.launch.outcomes import HydraRunEnded
    from lmm_forget.launch.subprocess_launcher import list_sweep_overrides

    full_config = _add_hydra_node(cfg)
    config = resolve_config(full_config)
    job_name = build_single_job_name(config)
    grid = OmegaConf.to_container(full_config.hydra.sweeper.get("params") or OmegaConf.create({}))
    if grid and full_config.hydra.mode == RunMode.RUN:
        swept_keys = ", ".join(map(str, grid))
        print(
            f"lmm-forget: note: experiment={full_config.hydra.runtime.choices.experiment} is a sweep over "
            f"{swept_keys}; this is "
            "one job of it, add -m for all",
            file=sys.stderr,
        )
    if full_config.hydra.mode == RunMode.MULTIRUN and config["hardware"]["devices"] * config["hardware"]["nodes"] > 1:
        raise LaunchError(
            IN_PROCESS_MESSAGE.format(what="several devices", words=" ".join(_drop_launcher_overrides(args)))
        )
    if full_config.hydra.mode == RunMode.MULTIRUN:  # Hydra's own launcher, which calls this once per grid point
        sweep_overrides = [
            *list_sweep_overrides(
                OmegaConf.create({"hydra": {**full_config.hydra, "overrides": {"task": args.overrides}}})
            )
        ]
        choices = find_swept_choices([str(item) for item in full_config.hydra.overrides.task], sweep_overrides)
        job_name = build_job_name(choices, [str(key) for key in full_config.hydra.runtime.choices]) or job_name
    job = make_job(config, job_name)
    launcher = OmegaConf.to_container(full_config.hydra.launcher, resolve=True)
    assert isinstance(launcher, dict)
    target = str(launcher.pop("_target_"))

    def on_accepted() -> None:
        if full_config.hydra.mode == RunMode.MULTIRUN:
            accept_sweep(Path(full_config.hydra.sweep.dir), job.folder.parent)

    if target.endswith(".SlurmLauncher"):
        from lmm_forget.launch.slurm.monitor import run_jobs_in_slurm
        from lmm_forget.launch.slurm.settings import SlurmSettings

        settings = SlurmSettings.from_config({str(key): value for key, value in launcher.items()})
        result = run_jobs_in_slurm([job], settings, on_accepted)
    else:
        result = run_jobs([job], float(launcher.get("grace", GRACE_SECONDS)), on_accepted)
    if result.early_exit_code is not None:
        raise HydraRunEnded(result)
    error = print_job_failures(result.outcomes)
    if error is not None:
        raise error
    write_and_print_summary(job.folder.parent)
    return job.read_objective()


def _check_torchrun_launch(args: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Refuse what would train a mixture of grid points. Raises LaunchError or ConfigError."""
    torchrun_variables = [key for key in TORCHRUN_VARIABLES if key in environment]
    if args.multirun and torchrun_variables:
        raise LaunchError(
            f"-m under torchrun ({', '.join(torchrun_variables)} set) would run every job on every rank; "
            "start it with plain "
            f"python -m lmm_forget.run -m {' '.join(args.overrides)}"
        )
    if args.multirun and any(text.replace("override ", "") == "hydra/launcher=basic" for text in args.overrides):
        for text in args.overrides:
            key, _, value = text.lstrip("+").partition("=")
            if key in ("hardware.devices", "hardware.nodes") and value != "1":
                raise LaunchError(IN_PROCESS_MESSAGE.format(what=text, words=" ".join(_drop_launcher_overrides(args))))


def _drop_launcher_overrides(args: argparse.Namespace) -> list[str]:
    return [word for word in args.overrides if "hydra/launcher" not in word]


def _format_topics(argv: Sequence[str]) -> str:
    """The settings of the groups, or the settings, that a command line with `--help` names: `--help training`."""
    words = iter(argv)
    topics = []
    for word in words:
        if word in OPTIONS_WITH_VALUE:
            next(words, None)
        elif not word.startswith("-") and "=" not in word:
            topics.append(word)
    if not topics:
        return ""
    from lmm_forget.config.schema.reference import format_settings_help

    return "\n".join(format_settings_help(topic, _find_config_dirs(argv)) for topic in topics)


def _find_config_dirs(argv: Sequence[str]) -> list[Path]:
    options = move_options_first(argv)
    return [
        Path(value or following)
        for word, following in zip(options, [*options[1:], ""], strict=True)
        for name, _, value in (word.partition("="),)
        if name in ("--config-dir", "-cd")
    ]


def _format_choices(argv: Sequence[str]) -> str:
    """The groups of conf/ and their choices, with those of the user's own folder, for the end of the help."""
    import textwrap

    from lmm_forget.config import find_conf_dir, list_group_choices

    config_dirs = _find_config_dirs(argv)
    lines = []
    for group in HELP_GROUPS:
        names = ", ".join(list_group_choices(group, config_dirs)) or "-"
        lines += textwrap.wrap(names, 110, initial_indent=f"  {group:<11}", subsequent_indent=" " * 13)
    return "\n".join(
        [
            "groups and their choices:",
            *lines,
            "",
            "Results: multirun/<name>/<job>/results.json, and multirun/<name>/summary.html over all jobs of a name.",
            "The same command again does only what is missing.",
            f"Every setting: docs/configuration.md, or --help GROUP; its value: {find_conf_dir()}",
        ]
    )


def _raise_usage_error(message: str) -> NoReturn:
    raise ConfigError(f"{message}; see python -m lmm_forget.run --help")


COMMAND = Command(
    name="run",
    summary="train a sequence of skills and measure what was forgotten, as one job or as a sweep (-m)",
    run=_run_command_line,
    usage="[group=choice ...] [key=value ...]",
    description="""
A large multimodal model is trained on one skill after another; everything is evaluated before the first stage and after
each one. `lmm-forget run` is the same as `python -m lmm_forget.run`.""",
    options=(
        Option(
            "-m", "", "a sweep: every combination of comma-separated values, each in a process of its own", "--multirun"
        ),
        CONFIG_DIR,
        Option("--cfg", "job", "print the configuration instead of running it; with --resolve: its final values"),
        Option("--resolve", "", "see --cfg"),
        Option(
            "--help", "GROUP", "every setting of a group (--help training), or one of them (--help training.max_steps)"
        ),
    ),
    examples=(
        "python -m lmm_forget.run experiment=smoke",
        "python -m lmm_forget.run recipe=mlp_gateup training.max_steps=100 seed=1",
        "python -m lmm_forget.run -m recipe=sa_proj,mlp_gateup,llm",
        "python -m lmm_forget.run -m recipe=sa_proj,mlp_gateup sequence=order 'sequence.order=range(0,120)'",
        "python -m lmm_forget.run --config-dir mine sequence=single sequence.task=my_skill",
        "python -m lmm_forget.run -m recipe=sa_proj,llm hardware=ddp hardware.devices=4",
        "torchrun --nproc_per_node 8 -m lmm_forget.run recipe=llm hardware=fsdp",
    ),
    exit_codes={0: "done", 1: "a job failed", 2: "nothing was started", 130: "stopped; the same command resumes it"},
    override_prefixes=("",),
    format_epilog=_format_choices,
    format_topics=_format_topics,
    is_parsed_by_hydra=True,
    program="python -m lmm_forget.run",
)
main = COMMAND.main
