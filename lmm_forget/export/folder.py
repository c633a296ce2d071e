"""Write a stage model: one copy of the model in memory, deltas put into it tensor by tensor, every hash compared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import ConfigError, LmmForgetError, StoreError
from lmm_forget.export.card import model_card
from lmm_forget.files import usual_mode

if TYPE_CHECKING:
    from lmm_forget.export.job import ExportedStage
    from lmm_forget.models.loading import LMM

SHARD = "5GB"
"""Largest weights file; a larger model gets several and an index."""


def export(
    stage: ExportedStage, out: Path, *, base: str | None = None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write `stage` to the new folder `out`, which appears when it is complete; `base` replaces the job's model path.

    `say` hears of each step. Returns what was written: folder, stage, task, weights_hash, dtype, bytes, files. Raises
    ConfigError when `out` exists or the base cannot be loaded or is another one, StoreError for deltas that do not fit.
    """
    refuse_existing(out)
    stage.sources()  # what is missing is said before anything is loaded
    if base is not None and not (Path(base) / "config.json").is_file():
        raise ConfigError(f"base={base} has no config.json; name the folder of the base model")
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)  # so is a folder that cannot be written
    except OSError as error:
        raise ConfigError(f"out={out} cannot be written: {error.strerror or error}") from None
    try:
        say("load the base")
        lmm = stage_model(stage, base, say)
        say(f"write {out}")
        files = _write(stage, lmm, draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {
        "out": str(out),
        "stage": stage.index,
        "task": stage.entry["task"],
        "weights_hash": stage.entry["weights_hash"],
        "dtype": str(lmm.model.dtype).removeprefix("torch."),
        "bytes": sum(path.stat().st_size for path in files),
        "files": [str(path.relative_to(out)) for path in files],
    }


def _write(stage: ExportedStage, lmm: LMM, draft: Path, out: Path) -> list[Path]:
    """Write everything into `draft` and let it become `out`; returns the files. Raises ConfigError."""
    from safetensors import SafetensorError

    try:
        lmm.model.save_pretrained(draft, max_shard_size=SHARD)
        lmm.processor.save_pretrained(draft)
        (draft / "README.md").write_text(model_card(stage), encoding="utf-8")
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        for path in files:
            usual_mode(path)
        refuse_existing(out)
        draft.rename(out)
    except (OSError, SafetensorError) as error:  # a full disk may come as either
        raise ConfigError(
            f"out={out} cannot be written: {getattr(error, 'strerror', None) or error}"
        ) from None
    return [out / path.relative_to(draft) for path in files]


def refuse_existing(out: Path) -> None:
    """Raise ConfigError if `out` is there already, whatever it is."""
    if out.exists() or out.is_symlink():
        raise ConfigError(f"out={out} exists already and is never overwritten; choose another folder")


def stage_model(stage: ExportedStage, base: str | None, say: Callable[[str], None]) -> LMM:
    """The stage's model, bit for bit the one that was evaluated (its hashes say so). Raises as `export` does."""
    import torch

    from lmm_forget.models.weights import model_hashes, tensor_hash, weights_hash

    lmm = _load(stage.config["model"], base)
    hashes = model_hashes(lmm.model)
    wanted = stage.results["base"]["weights_hash"]
    if weights_hash(hashes) != wanted:
        raise ConfigError(
            f"the base model is not the one that the job started from (its weights_hash is not {wanted[:12]}…); "
            "give its folder with base=FOLDER"
        )
    say(f"put in the tensors that moved until stage {stage.index}")
    parameters = dict(lmm.model.named_parameters())
    with torch.no_grad():
        for name, tensor in stage.moved():
            there = parameters.get(name)
            if there is None or (there.shape, there.dtype) != (tensor.shape, tensor.dtype):
                raise StoreError(
                    f"the store's {name} does not fit the base; was it made with another version?"
                )
            there.copy_(tensor)
            hashes[name] = tensor_hash(tensor)
    if weights_hash(hashes) != stage.entry["weights_hash"]:
        raise StoreError(
            f"the store {stage.store.root} gives other weights than the job evaluated after stage {stage.index}; "
            "something in it is damaged: run the job again with another store"
        )
    return lmm


def _load(spec: Mapping[str, Any], base: str | None) -> LMM:
    from transformers.utils import logging

    from lmm_forget.models.loading import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return load({**spec, **({"path": base} if base else {})})
    except LmmForgetError as error:
        if base:
            raise
        raise ConfigError(f"{error}; or give the base with base=FOLDER") from None
