"""From a `model` config node to a loaded model with its processor, family and component map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, PreTrainedModel, ProcessorMixin

from lmm_forget.errors import ConfigError
from lmm_forget.models.checkpoint import (
    check_folder,
    check_processor,
    check_weights,
    no_load_report,
    readable,
)
from lmm_forget.models.components import ComponentMap
from lmm_forget.models.family import Family, family_for, family_for_type
from lmm_forget.models.folders import model_source


@dataclass
class LMM:
    """A loaded model with all that is needed to ask it, train it and name its parts.

    `spec` is the resolved `model` config node; `end_token_ids` are the tokens at which generation stops.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    family: Family
    components: ComponentMap
    spec: Mapping[str, Any]
    end_token_ids: list[int]


def load(spec: Mapping[str, Any]) -> LMM:
    """Load the model that a resolved `model` config node describes.

    `path` is a local folder or `package:<name>`; without it `hub_id` (and `revision`) is fetched. Only safetensors
    weights are read and no remote code runs. The dtype is `dtype` ("auto" or absent: the checkpoint's). Raises
    ConfigError when the model cannot be found or read.
    """
    source, revision = model_source(spec)
    common: dict[str, Any] = {"trust_remote_code": False, "local_files_only": bool(spec.get("path"))}
    if revision:
        common["revision"] = revision
    check_folder(spec, source)
    with readable(spec, source, "model"):
        config = AutoConfig.from_pretrained(source, **common)
    family = family_for(config)
    if spec.get("family") not in (None, family.name):
        raise ConfigError(f"model.family={spec['family']}, but the model in {source} is a {family.name}")
    with readable(spec, source, "processor"):
        processor = AutoProcessor.from_pretrained(source, **common)
    check_processor(family, config, processor, source)
    budget = spec.get("image") or {}
    if not isinstance(budget, Mapping):
        raise ConfigError(f"model.image={budget} must be keys and values, as in model.image.max_tiles=4")
    _apply_image_budget(family, config, processor, budget)
    with readable(spec, source, "model"), no_load_report():
        model, info = family.hf_class.from_pretrained(
            source,
            config=config,
            dtype=_dtype(spec),
            attn_implementation=spec.get("attention") or "sdpa",
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that they are listed; the next line refuses them
            output_loading_info=True,
            **common,
        )
    check_weights(model, info, source)
    return assemble(model.eval(), processor, spec)


def assemble(model: PreTrainedModel, processor: ProcessorMixin, spec: Mapping[str, Any]) -> LMM:
    """Put a model and its processor together as an LMM."""
    family = family_for(model)
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    end = processor.tokenizer.convert_tokens_to_ids(family.end_of_answer(processor))
    ends = {end}
    stops = getattr(model.generation_config, "eos_token_id", None)
    ends.update([stops] if isinstance(stops, int) else stops or [])
    components = family.components(model)
    family.verify(model, processor, components)
    return LMM(model, processor, family, components, spec, sorted(ends))


def skeleton(architecture: str) -> PreTrainedModel:
    """The model of a packaged architecture on the meta device: shapes and dtypes, no weights, no network, seconds.

    Raises ConfigError listing the architectures that exist.
    """
    if architecture not in architectures():
        raise ConfigError(
            f"there is no architecture {architecture!r}; choose one of: {', '.join(architectures())}"
        )
    text = (files("lmm_forget.models") / "architectures" / f"{architecture}.json").read_text("utf-8")
    return _on_meta(json.loads(text), "auto")


def skeleton_for(spec: Mapping[str, Any]) -> PreTrainedModel:
    """The meta-device model of a `model` config node: of its `path` if it has one, else of its `architecture`.

    Raises ConfigError when neither can be read without a network.
    """
    if spec.get("path"):
        source, _ = model_source(spec)
        with readable(spec, source, "model"):
            data = json.loads((Path(source) / "config.json").read_text("utf-8"))
        return _on_meta(data, _dtype(spec))
    if not spec.get("architecture"):
        raise ConfigError(
            f"model {spec.get('name')!r} has neither `path` nor `architecture`; set model.path=FOLDER or "
            f"model.architecture to one of: {', '.join(architectures())}"
        )
    return skeleton(str(spec["architecture"]))


def architectures() -> list[str]:
    """Names of the packaged architectures."""
    folder = files("lmm_forget.models") / "architectures"
    return sorted(p.name.removesuffix(".json") for p in folder.iterdir() if p.name.endswith(".json"))


def _on_meta(data: Mapping[str, Any], dtype: torch.dtype | str) -> PreTrainedModel:
    """The model of a `config.json`'s content on the meta device, in `dtype` ("auto": the one the file names)."""
    if "model_type" not in data:
        raise ConfigError("the model's config.json names no model_type")
    family = family_for_type(str(data["model_type"]))
    config = AutoConfig.for_model(**data)
    with torch.device("meta"):
        chosen = (config.dtype or torch.float32) if dtype == "auto" else dtype
        return family(config).hf_class._from_config(config, dtype=chosen)


def _dtype(spec: Mapping[str, Any]) -> torch.dtype | str:
    name = spec.get("dtype") or "auto"
    if name == "auto":
        return "auto"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"model.dtype={name} is not a torch dtype; use auto, float32, bfloat16 or float16")
    return dtype


def _apply_image_budget(
    family: Family, config: Any, processor: ProcessorMixin, image: Mapping[str, Any]
) -> None:
    unknown = [key for key in image if key not in family.image_keys]
    if unknown:
        raise ConfigError(
            f"model.image.{unknown[0]} is unknown to {family.name}; it has: {', '.join(family.image_keys)}"
        )
    wanted = {key: value for key, value in image.items() if value is not None}
    if wanted:
        family.apply_image_budget(config, processor, wanted)
