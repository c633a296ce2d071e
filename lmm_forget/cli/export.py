"""`lmm-forget export run=JOB stage=last out=FOLDER`: a stage model as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lmm_forget.cli.parser import run_command, take_format, take_options
from lmm_forget.errors import ConfigError

HELP = """usage: lmm-forget export run=JOB out=FOLDER [stage=last] [store=FOLDER] [base=FOLDER] [format=json]

Writes the model after a stage of a finished job: weights in the base's number format, processor, generation config and
a model card. Transformers loads it without this package, AutoModelForImageTextToText.from_pretrained(FOLDER).

  run     the job's folder, multirun/<name>/<job>
  out     the folder to write; it must not exist
  stage   last, or the number of a stage from 1
  store   where the stages' weights lie, if not where the job left them
  base    the base model's folder, if not where the job found it
  format  text, or json: what was written, for scripts

example:
  lmm-forget export run=multirun/demo/sa_proj out=exported/sa_proj
"""
KEYS = ("run", "out", "stage", "store", "base", "format")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (2 for a mistake, told in one line on stderr)."""
    return run_command(_export, arguments, HELP)


def _options(words: Sequence[str]) -> dict[str, str]:
    options, odd = take_options(words, KEYS)
    odd += [f"{key}=" for key, value in options.items() if not value]
    if odd:
        raise ConfigError(f"cannot read {odd[0]!r}; write key=value with one of: {', '.join(KEYS)}")
    for key, example in (("run", "multirun/<name>/<job>"), ("out", "FOLDER")):
        if key not in options:
            raise ConfigError(f"{key}= is missing; write {key}={example}")
    return options


def _export(words: Sequence[str]) -> None:
    from lmm_forget.export.folder import export, refuse_existing
    from lmm_forget.export.job import find_stage

    form, rest = take_format(words, ("text", "json"))
    options = _options(rest)
    text, out = form == "text", Path(options["out"])
    refuse_existing(out)
    stage = find_stage(options["run"], options.get("stage", "last"), options.get("store"))
    done = export(
        stage, out, base=options.get("base"), say=lambda line: print(line, flush=True) if text else None
    )
    if text:
        print(
            f"{out}: stage {done['stage']} ({done['task']}), {done['dtype']}, {done['bytes'] / 1e6:,.1f} MB"
        )
    else:
        print(json.dumps(done, indent=2))
