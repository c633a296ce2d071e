"""`lmm-forget export run=JOB stage=last out=FOLDER`: a stage model as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lmm_forget.cli.parser import extract_format, extract_options, run_command
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
OPTION_NAMES = ("run", "out", "stage", "store", "base", "format")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (2 for a mistake, told in one line on stderr)."""
    return run_command(_run_export, arguments, HELP)


def _parse_options(words: Sequence[str]) -> dict[str, str]:
    options, invalid_words = extract_options(words, OPTION_NAMES)
    invalid_words += [f"{key}=" for key, value in options.items() if not value]
    if invalid_words:
        raise ConfigError(f"cannot read {invalid_words[0]!r}; write key=value with one of: {', '.join(OPTION_NAMES)}")
    for key, example in (("run", "multirun/<name>/<job>"), ("out", "FOLDER")):
        if key not in options:
            raise ConfigError(f"{key}= is missing; write {key}={example}")
    return options


def _run_export(words: Sequence[str]) -> None:
    from lmm_forget.export.exported_stage import load_exported_stage
    from lmm_forget.export.model_writer import export_stage, require_new_folder

    output_format, rest = extract_format(words, ("text", "json"))
    options = _parse_options(rest)
    is_text, out = output_format == "text", Path(options["out"])
    require_new_folder(out)
    stage = load_exported_stage(options["run"], options.get("stage", "last"), options.get("store"))
    report = export_stage(
        stage,
        out,
        base_folder=options.get("base"),
        report_progress=lambda line: print(line, flush=True) if is_text else None,
    )
    if is_text:
        print(f"{out}: stage {report['stage']} ({report['task']}), {report['dtype']}, {report['bytes'] / 1e6:,.1f} MB")
    else:
        print(json.dumps(report, indent=2))
