"""Writes a stage's model: loads the base, copies the changed tensors into it one by one, and compares every hash."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from lmm_forget.errors import ConfigError, LmmForgetError, StoreError
from lmm_forget.export.exported_stage import ExportedStage
from lmm_forget.export.model_card import render_model_card
from lmm_forget.files import apply_default_permissions
from lmm_forget.models.loading import LMM, load_model
from lmm_forget.models.weight_hashes import hash_parameters, hash_tensor, hash_weights

MAX_SHARD_SIZE = "5GB"
"""Largest weights file; a larger model gets several and an index."""


def export_stage(
    stage: ExportedStage,
    output_folder: Path,
    *,
    base_folder: str | None = None,
    report_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Write the model of `stage` to the new folder `output_folder`, which appears once it is complete.

    `base_folder` replaces the job's model path; `report_progress` is called with one line before each step. Returns
    what was written: out (the folder), stage, task, weights_hash, dtype, bytes, files. Raises ConfigError if
    `output_folder` exists, or the base cannot be loaded or is not the job's; StoreError for deltas that do not fit.
    """
    require_new_folder(output_folder)
    stage.find_tensor_sources()  # raises, before anything is loaded, if a record is missing
    if base_folder is not None and not (Path(base_folder) / "config.json").is_file():
        raise ConfigError(f"base={base_folder} has no config.json; name the folder of the base model")
    draft = output_folder.with_name(f".{output_folder.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)  # fails here, before anything is loaded, if the folder cannot be written
    except OSError as error:
        raise ConfigError(f"out={output_folder} cannot be written: {error.strerror or error}") from None
    try:
        report_progress("load the base")
        lmm = load_stage_model(stage, base_folder, report_progress)
        report_progress(f"write {output_folder}")
        files = _write_model(stage, lmm, draft, output_folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {
        "out": str(output_folder),
        "stage": stage.index,
        "task": stage.stage_entry["task"],
        "weights_hash": stage.stage_entry["weights_hash"],
        "dtype": str(lmm.model.dtype).removeprefix("torch."),
        "bytes": sum(path.stat().st_size for path in files),
        "files": [str(path.relative_to(output_folder)) for path in files],
    }


def _write_model(stage: ExportedStage, lmm: LMM, draft: Path, output_folder: Path) -> list[Path]:
    """Write everything into `draft`, then rename it to `output_folder`; returns the files. Raises ConfigError."""
    try:
        lmm.model.save_pretrained(draft, max_shard_size=MAX_SHARD_SIZE)
        lmm.processor.save_pretrained(draft)
        (draft / "README.md").write_text(render_model_card(stage), encoding="utf-8")
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        for path in files:
            apply_default_permissions(path)
        require_new_folder(output_folder)
        draft.rename(output_folder)
    except (OSError, SafetensorError) as error:  # a full disk raises either of them
        raise ConfigError(
            f"out={output_folder} cannot be written: {getattr(error, 'strerror', None) or error}"
        ) from None
    return [output_folder / path.relative_to(draft) for path in files]


def require_new_folder(output_folder: Path) -> None:
    """Raise ConfigError if something exists at this path, whatever it is."""
    if output_folder.exists() or output_folder.is_symlink():
        raise ConfigError(f"out={output_folder} exists already and is never overwritten; choose another folder")


def load_stage_model(stage: ExportedStage, base_folder: str | None, report_progress: Callable[[str], None]) -> LMM:
    """The stage's model, bit for bit the one that was evaluated: its hash is checked. Raises as `export_stage` does."""
    lmm = _load_base_model(stage.config["model"], base_folder)
    hashes = hash_parameters(lmm.model)
    expected_hash = stage.results["base"]["weights_hash"]
    if hash_weights(hashes) != expected_hash:
        raise ConfigError(
            f"the base model is not the one that the job started from (its weights_hash is not {expected_hash[:12]}…); "
            "give its folder with base=FOLDER"
        )
    report_progress(f"put in the tensors that moved until stage {stage.index}")
    parameters = dict(lmm.model.named_parameters())
    with torch.no_grad():
        for name, tensor in stage.iterate_changed_tensors(parameters):
            parameter = parameters.get(name)
            if parameter is None or (parameter.shape, parameter.dtype) != (tensor.shape, tensor.dtype):
                raise StoreError(f"the store's {name} does not fit the base; was it made with another version?")
            parameter.copy_(tensor)
            hashes[name] = hash_tensor(tensor)
    if hash_weights(hashes) != stage.stage_entry["weights_hash"]:
        raise StoreError(
            f"the store {stage.store.root} gives other weights than the job evaluated after stage {stage.index}; "
            "something in it is damaged: run the job again with another store"
        )
    return lmm


def _load_base_model(model_config: Mapping[str, Any], base_folder: str | None) -> LMM:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return load_model({**model_config, **({"path": base_folder} if base_folder else {})})
    except LmmForgetError as error:
        if base_folder:
            raise
        raise ConfigError(f"{error}; or give the base with base=FOLDER") from None
