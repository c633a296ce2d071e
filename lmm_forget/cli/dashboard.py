"""`lmm-forget dashboard`: build the W&B view of a project and save it there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from lmm_forget.cli.command import CONFIG_DIR, Arguments, Command, Option
from lmm_forget.errors import ConfigError, shorten_value

if TYPE_CHECKING:
    from lmm_forget.report.wandb_workspace import DashboardSpec

DEFAULT_PROJECT = "lmm-forget"
"""The project of runs that were given no other one."""
MAX_NAME_LENGTH = 128
"""Characters that W&B takes for a name."""
_FORBIDDEN_CHARACTERS = "/\\#?%:"  # what W&B refuses in a project's name: it stands in an address


def _save_dashboard(arguments: Arguments) -> None:
    options = {name: values[0] for name, values in arguments.options.items() if not name.startswith("--")}
    _check_dashboard_options(options)
    spec = build_dashboard_request(options, arguments.overrides, arguments.get("--config-dir"))
    from lmm_forget.report.wandb_workspace import build_workspace, save_workspace, workspace_to_json

    workspace = build_workspace(spec)
    if arguments.output_format == "json":
        print(json.dumps(workspace_to_json(workspace), indent=1, sort_keys=True))
    else:
        print(save_workspace(workspace, arguments.get("view")))


def _check_dashboard_options(options: Mapping[str, str]) -> None:
    """Raise ConfigError, before anything is built, for a word of this command's that W&B could not take."""
    for key, value in options.items():
        if not any(sign.isprintable() and not sign.isspace() for sign in value):
            raise ConfigError(f"{key}={value!r} is blank; give it a value, or leave the word out")
        unprintable = next((sign for sign in value if not sign.isprintable()), None)
        if unprintable is not None:
            raise ConfigError(f"{key}={value!r} holds the character U+{ord(unprintable):04X}, which no name can hold")
        if key != "view" and len(value) > MAX_NAME_LENGTH:
            raise ConfigError(
                f"{key}={value[:20]}… has {len(value)} characters; a name in W&B may have {MAX_NAME_LENGTH}"
            )
    for key in ("entity", "project"):
        value = options.get(key, "")
        forbidden = [sign for sign in value if sign in _FORBIDDEN_CHARACTERS or (key == "entity" and sign.isspace())]
        if forbidden or value != value.strip():
            raise ConfigError(
                f"{key}={value!r} cannot be the name of {'a user or team' if key == 'entity' else 'a project'} in "
                f"W&B: it holds {(forbidden or [' '])[0]!r}; use letters, digits, - and _"
            )
    from lmm_forget.config.job_names import NAME_PATTERN

    if "sweep" in options and not NAME_PATTERN.fullmatch(options["sweep"]):
        raise ConfigError(
            f"sweep={options['sweep']!r} is no sweep's name; it is what name=… was in lmm_forget.run, with letters, "
            "digits and . _ - = +"
        )
    if "view" in options:
        _check_view_url(options["view"], options.get("entity"), options.get("project", DEFAULT_PROJECT))


def _check_view_url(view_url: str, entity: str | None, project: str) -> None:
    """Raise ConfigError for an address that is not one of a saved view of the project."""
    try:
        url = urlsplit(view_url)
    except ValueError:
        url = urlsplit("")
    path_parts = [unquote(part) for part in url.path.split("/")[1:]]
    name = parse_qs(url.query).get("nw", [""])[0]
    is_web_address = url.scheme in ("http", "https") and url.netloc
    if not is_web_address or len(path_parts) != 2 or not all(path_parts) or not name or name.startswith("nwuser"):
        raise ConfigError(
            f"view={shorten_value(view_url, 120)} is not the address of a saved view; it looks like "
            f"https://wandb.ai/{entity or 'ENTITY'}/{project}?nw=a0b1c2d3"
        )
    if entity is not None and [part.lower() for part in path_parts] != [entity.lower(), project.lower()]:
        raise ConfigError(
            f"view={shorten_value(view_url, 120)} is a view of {'/'.join(path_parts)}, and the dashboard is for "
            f"{entity}/{project}; give the entity and project of the view that is replaced"
        )


def build_dashboard_request(
    options: dict[str, str], overrides: Sequence[str], config_dir: str | None = None
) -> DashboardSpec:
    """The dashboard for these `options` and the tasks of the configuration with `overrides`. Raises ConfigError."""
    from lmm_forget.config import compose_config, resolve_config
    from lmm_forget.report.wandb_workspace import DashboardSpec

    if not options.get("entity"):
        raise ConfigError("entity is missing; name the user or team whose project it is: entity=my-team")
    config = resolve_config(compose_config(overrides, config_dir))
    optional_fields = {"name": options["title"]} if options.get("title") else {}
    return DashboardSpec(
        entity=options["entity"],
        project=options.get("project") or DEFAULT_PROJECT,
        targets=tuple(dict.fromkeys(config["sequence"]["tasks"])),
        suite=tuple(config["suite"]["tasks"]),
        sweep=options.get("sweep") or None,
        **optional_fields,
    )


COMMAND = Command(
    name="dashboard",
    summary="build the W&B view of a project, and save it there",
    run=_save_dashboard,
    usage="entity=NAME [key=value ...]",
    description="""
The view shows figures of merit, stages, benchmarks, probes and runs. model=…, sequence=… and suite=…, as for
`lmm-forget run`, choose the tasks that it has panels for.""",
    options=(
        Option("entity", "NAME", "the user or team whose project it is"),
        Option("project", "NAME", f"the project that the runs are in (default: {DEFAULT_PROJECT})"),
        Option("title", "TEXT", "the view's name"),
        Option("sweep", "NAME", "only the runs of this sweep"),
        Option("view", "URL", "the saved view to replace"),
        CONFIG_DIR,
    ),
    formats=("view", "json"),
    override_prefixes=("",),
    notes="format=json prints what would be saved, without network.",
    examples=(
        "lmm-forget dashboard entity=my-team",
        'lmm-forget dashboard entity=my-team project=forgetting sweep=demo title="Demo"',
        "lmm-forget dashboard entity=my-team model=llava_onevision_7b format=json",
    ),
)
main = COMMAND.main
