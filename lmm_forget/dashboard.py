"""`python -m lmm_forget.dashboard`: build the W&B view of a project and save it there."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from lmm_forget.command import Parser, run_command, take_format, take_options
from lmm_forget.errors import ConfigError
from lmm_forget.report.dashboard import Wanted, as_json, build, save

OWN = ("entity", "project", "title", "sweep", "view")
EXAMPLES = """\
  entity=…   the user or team, project=… the project that the runs are in (default: lmm-forget)
  title=…    the view's name, sweep=… only the runs of this sweep, view=URL replaces a saved view
  format=json prints what would be saved, without network
  model=…, sequence=…, suite=… as for lmm_forget.run: which tasks there are panels for

examples:
  python -m lmm_forget.dashboard entity=my-team
  python -m lmm_forget.dashboard entity=my-team project=forgetting sweep=demo title="Demo"
  python -m lmm_forget.dashboard entity=my-team model=llava_onevision_7b format=json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Build the view that `argv` (default: the command line) asks for; returns the exit code (2 for a bad request)."""
    return run_command(_dashboard, argv)


def _dashboard(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="python -m lmm_forget.dashboard",
        description="Build the saved W&B view of a project: figures of merit, stages, benchmarks, probes, runs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="see below")
    parser.add_argument(
        "--config-dir", metavar="DIR", help="a folder with groups of your own (task/mine.yaml)"
    )
    given = parser.read(arguments)
    form, rest = take_format(given.overrides, ("view", "json"))
    own, overrides = take_options(rest, OWN)
    view = build(wanted(own, overrides, given.config_dir))
    if form == "json":
        print(json.dumps(as_json(view), indent=1, sort_keys=True))
    else:
        print(save(view, own.get("view")))


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
        project=own.get("project") or "lmm-forget",
        targets=tuple(dict.fromkeys(config["sequence"]["tasks"])),
        suite=tuple(config["suite"]["tasks"]),
        sweep=own.get("sweep") or None,
        **more,
    )


if __name__ == "__main__":
    sys.exit(main())
