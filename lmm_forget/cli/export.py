"""`lmm-forget export run=JOB out=FOLDER`: the model after a stage as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

from lmm_forget.cli.command import Arguments, Command, Option
from lmm_forget.errors import ConfigError


def _export_model(arguments: Arguments) -> None:
    for name, example in (("run", "multirun/<name>/<job>"), ("out", "FOLDER")):
        if arguments.get(name) is None:
            raise ConfigError(f"{name}= is missing; write {name}={example}")
    from lmm_forget.export.exported_stage import load_exported_stage
    from lmm_forget.export.model_writer import export_stage, require_new_folder

    is_text, output_dir = arguments.output_format == "text", Path(arguments.options["out"][0])
    require_new_folder(output_dir)
    stage = load_exported_stage(arguments.options["run"][0], arguments.get("stage") or "last", arguments.get("store"))
    report = export_stage(
        stage,
        output_dir,
        base_folder=arguments.get("base"),
        report_progress=lambda line: print(line, flush=True) if is_text else None,
    )
    if is_text:
        size = f"{report['bytes'] / 1e6:,.1f} MB"
        print(f"{output_dir}: stage {report['stage']} ({report['task']}), {report['dtype']}, {size}")
    else:
        print(json.dumps(report, indent=2))


COMMAND = Command(
    name="export",
    summary="write the model after a stage as an ordinary Hugging Face folder",
    run=_export_model,
    description="""
The folder holds the weights in the base's number format, the processor, the generation config and a model card.
Transformers loads it without this package: AutoModelForImageTextToText.from_pretrained(FOLDER).""",
    options=(
        Option("run", "JOB", "the folder of a finished job, multirun/<name>/<job>"),
        Option("out", "FOLDER", "the folder to write; it must not exist"),
        Option("stage", "N", "last (the default), or the number of a stage from 1"),
        Option("store", "FOLDER", "where the stages' weights are, if not where the job left them"),
        Option("base", "FOLDER", "the base model's folder, if not where the job found it"),
    ),
    formats=("text", "json"),
    examples=("lmm-forget export run=multirun/demo/sa_proj out=exported/sa_proj",),
)
main = COMMAND.main
