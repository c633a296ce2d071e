"""Load the model of a `model` config node, with its processor, family and component map."""

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
from lmm_forget.models.checkpoint_checks import (
    convert_load_errors,
    reject_pickled_weights,
    silence_load_report,
    verify_loaded_weights,
    verify_processor,
)
from lmm_forget.models.components import ComponentMap
from lmm_forget.models.family import Family
from lmm_forget.models.model_source import resolve_model_source
from lmm_forget.models.registry import check_family_setting, get_family_class, resolve_family


@dataclass
class LMM:
    """A loaded model with what training and generation need.

    `spec` is the resolved `model` config node; generation stops at a token in `end_token_ids`.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    family: Family
    components: ComponentMap
    spec: Mapping[str, Any]
    end_token_ids: list[int]


def load_model(spec: Mapping[str, Any]) -> LMM:
    """Load the model that a resolved `model` config node describes.

    Its key `path` is a local folder or `package:<name>`; without it, `hub_id` (and `revision`) is downloaded. Its key
    `dtype` is the dtype of the weights ("auto" or absent: that of the checkpoint). Only safetensors are read, and no
    remote code runs. Raises ConfigError if the model cannot be found or read.
    """
    source, revision = resolve_model_source(spec)
    common: dict[str, Any] = {"trust_remote_code": False, "local_files_only": bool(spec.get("path"))}
    if revision:
        common["revision"] = revision
    reject_pickled_weights(spec, source)
    with convert_load_errors(spec, source, "model"):
        config = AutoConfig.from_pretrained(source, **common)
    family = resolve_family(config)
    check_family_setting(spec, family, str(source))
    with convert_load_errors(spec, source, "processor"):
        processor = AutoProcessor.from_pretrained(source, **common)
    verify_processor(family, config, processor, source)
    image_limits = spec.get("image") or {}
    if not isinstance(image_limits, Mapping):
        raise ConfigError(f"model.image={image_limits} must be keys and values, as in model.image.max_tiles=4")
    _apply_image_limits(family, config, processor, image_limits)
    with convert_load_errors(spec, source, "model"), silence_load_report():
        model, loading_info = family.hf_class.from_pretrained(
            source,
            config=config,
            dtype=_parse_dtype(spec),
            attn_implementation=spec.get("attention") or "sdpa",
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported in loading_info and refused below
            output_loading_info=True,
            **common,
        )
    verify_loaded_weights(model, loading_info, source)
    return assemble_model(model.eval(), processor, spec)


def assemble_model(model: PreTrainedModel, processor: ProcessorMixin, spec: Mapping[str, Any]) -> LMM:
    """Build the LMM of a model and its processor. Raises ConfigError if the model's parts cannot be mapped."""
    family = resolve_family(model)
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    end_token_id = processor.tokenizer.convert_tokens_to_ids(family.get_end_of_answer_token(processor))
    end_token_ids = {end_token_id}
    stops = getattr(model.generation_config, "eos_token_id", None)
    end_token_ids.update([stops] if isinstance(stops, int) else stops or [])
    components = family.map_components(model)
    family.verify_components(model, processor, components)
    return LMM(model, processor, family, components, spec, sorted(end_token_ids))


def build_meta_model(architecture: str) -> PreTrainedModel:
    """Build the model of an architecture in the package on the meta device: shapes and dtypes without weights.

    It needs no network and takes seconds. Raises ConfigError, listing the architectures, for an unknown one.
    """
    if architecture not in list_architectures():
        raise ConfigError(
            f"there is no architecture {architecture!r}; choose one of: {', '.join(list_architectures())}"
        )
    text = (files("lmm_forget.models") / "architectures" / f"{architecture}.json").read_text("utf-8")
    return _instantiate_on_meta(json.loads(text), "auto")


def build_meta_model_from_spec(spec: Mapping[str, Any]) -> PreTrainedModel:
    """Build the model of a `model` config node on the meta device, from its `path` or else its `architecture`.

    Raises ConfigError if it has neither, or if the folder cannot be read.
    """
    if spec.get("path"):
        source, _ = resolve_model_source(spec)
        with convert_load_errors(spec, source, "model"):
            data = json.loads((Path(source) / "config.json").read_text("utf-8"))
        return _instantiate_on_meta(data, _parse_dtype(spec))
    if not spec.get("architecture"):
        raise ConfigError(
            f"model {spec.get('name')!r} has neither `path` nor `architecture`; set model.path=FOLDER or "
            f"model.architecture to one of: {', '.join(list_architectures())}"
        )
    return build_meta_model(str(spec["architecture"]))


def list_architectures() -> list[str]:
    """Names of the architectures in the package."""
    folder = files("lmm_forget.models") / "architectures"
    return sorted(p.name.removesuffix(".json") for p in folder.iterdir() if p.name.endswith(".json"))


def _instantiate_on_meta(data: Mapping[str, Any], dtype: torch.dtype | str) -> PreTrainedModel:
    """The model that the content of a `config.json` describes, on the meta device ("auto": the file's dtype)."""
    if "model_type" not in data:
        raise ConfigError("the model's config.json names no model_type")
    family = get_family_class(str(data["model_type"]))
    config = AutoConfig.for_model(**data)
    with torch.device("meta"):
        resolved_dtype = (config.dtype or torch.float32) if dtype == "auto" else dtype
        return family(config).hf_class._from_config(config, dtype=resolved_dtype)


def _parse_dtype(spec: Mapping[str, Any]) -> torch.dtype | str:
    name = spec.get("dtype") or "auto"
    if name == "auto":
        return "auto"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"model.dtype={name} is not a torch dtype; use auto, float32, bfloat16 or float16")
    return dtype


def _apply_image_limits(
    family: Family, config: Any, processor: ProcessorMixin, image_limits: Mapping[str, Any]
) -> None:
    unknown = [key for key in image_limits if key not in family.image_limit_keys]
    if unknown:
        raise ConfigError(
            f"model.image.{unknown[0]} is unknown to {family.name}; it has: {', '.join(family.image_limit_keys)}"
        )
    limits = {key: value for key, value in image_limits.items() if value is not None}
    if limits:
        family.apply_image_limits(config, processor, limits)
