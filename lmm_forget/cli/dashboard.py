"""`lmm-forget dashboard`: build the W&B view of a project and save it there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs, unquote, urlsplit

from lmm_forget.cli.parser import Parser, run_command, take_format, take_options
from lmm_forget.config.naming import NAME
from lmm_forget.errors import ConfigError, brief
from lmm_forget.report.dashboard import Wanted, as_json, build, save

OWN = ("entity", "project", "title", "sweep", "view")
PROJECT = "lmm-forget"
"""The project that runs are in unless they were told another one."""
LONGEST = 128
"""Characters that W&B takes for a name."""
_NO_NAME = "/\\#?%:"  # what W&B refuses in a project's name: it stands in an address
EXAMPLES = """\
  entity=…   the user or team, project=… the project that the runs are in (default: lmm-forget)
  title=…    the view's name, sweep=… only the runs of this sweep, view=URL replaces a saved view
  format=json prints what would be saved, without network
  model=…, sequence=…, suite=… as for lmm_forget.run: which tasks there are panels for

examples:
  lmm-forget dashboard entity=my-team
  lmm-forget dashboard entity=my-team project=forgetting sweep=demo title="Demo"
  lmm-forget dashboard entity=my-team model=llava_onevision_7b format=json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Build the view that `argv` (default: the command line) asks for; returns the exit code (2 for a bad request)."""
    return run_command(_dashboard, argv)


def _dashboard(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="lmm-forget dashboard",
        description="Build the saved W&B view of a project: figures of merit, stages, benchmarks, probes, runs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="see below")
    parser.add_argument(
        "--config-dir", "-cd", metavar="DIR", help="a folder with groups of your own (task/mine.yaml)"
    )
    given = parser.read(arguments)
    form, rest = take_format(given.overrides, ("view", "json"))
    own, overrides = take_options(rest, OWN)
    _check_words(own)
    view = build(wanted(own, overrides, given.config_dir))
    if form == "json":
        print(json.dumps(as_json(view), indent=1, sort_keys=True))
    else:
        print(save(view, own.get("view")))


def _check_words(own: Mapping[str, str]) -> None:
    """Raise ConfigError, before anything is built, for a word of this command's that W&B could not take."""
    for key, value in own.items():
        if not any(sign.isprintable() and not sign.isspace() for sign in value):
            raise ConfigError(f"{key}={value!r} is blank; give it a value, or leave the word out")
        odd = next((sign for sign in value if not sign.isprintable()), None)
        if odd is not None:
            raise ConfigError(f"{key}={value!r} holds the character U+{ord(odd):04X}, which no name can hold")
        if key != "view" and len(value) > LONGEST:
            raise ConfigError(
                f"{key}={value[:20]}… has {len(value)} characters; a name in W&B may have {LONGEST}"
            )
    for key in ("entity", "project"):
        value = own.get(key, "")
        signs = [sign for sign in value if sign in _NO_NAME or (key == "entity" and sign.isspace())]
        if signs or value != value.strip():
            raise ConfigError(
                f"{key}={value!r} cannot be the name of {'a user or team' if key == 'entity' else 'a project'} in "
                f"W&B: it holds {(signs or [' '])[0]!r}; use letters, digits, - and _"
            )
    if "sweep" in own and not NAME.fullmatch(own["sweep"]):
        raise ConfigError(
            f"sweep={own['sweep']!r} is no sweep's name; it is what name=… was in lmm_forget.run, with letters, "
            "digits and . _ - = +"
        )
    if "view" in own:
        _check_view(own["view"], own.get("entity"), own.get("project", PROJECT))


def _check_view(address: str, entity: str | None, project: str) -> None:
    """Raise ConfigError for an address that is not one of a saved view of the project."""
    try:
        url = urlsplit(address)
    except ValueError:
        url = urlsplit("")
    places = [unquote(part) for part in url.path.split("/")[1:]]
    name = parse_qs(url.query).get("nw", [""])[0]
    web = url.scheme in ("http", "https") and url.netloc
    if not web or len(places) != 2 or not all(places) or not name or name.startswith("nwuser"):
        raise ConfigError(
            f"view={brief(address, 120)} is not the address of a saved view; it looks like "
            f"https://wandb.ai/{entity or 'ENTITY'}/{project}?nw=a0b1c2d3"
        )
    if entity is not None and [part.lower() for part in places] != [entity.lower(), project.lower()]:
        raise ConfigError(
            f"view={brief(address, 120)} is a view of {'/'.join(places)}, and the dashboard is for "
            f"{entity}/{project}; give the entity and project of the view that is replaced"
        )


def wanted(own: dict[str, str], overrides: Sequence[str], config_dir: str | None = None) -> Wanted:
    """What the command line asks for: `own` words of this command, `overrides` of the configuration.

    Raises ConfigError.
    """
    from lmm_forget.config import compose, resolve

    if not own.get("entity"):
        raise ConfigError("entity is missing; name the user or team whose project it is: entity=my-team")
    config = resolve(compose(overrides, config_dir))
    more = {"name": own["title"]} if own.get("title") else {}
    return Wanted(
        entity=own["entity"],
        project=own.get("project") or PROJECT,
        targets=tuple(dict.fromkeys(config["sequence"]["tasks"])),
        suite=tuple(config["suite"]["tasks"]),
        sweep=own.get("sweep") or None,
        **more,
    )
