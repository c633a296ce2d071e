"""Which family a model belongs to. A new family is added to FAMILIES."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmm_forget.errors import ConfigError
from lmm_forget.models.family import Family
from lmm_forget.models.generic_family import GenericFamily, is_image_text_to_text
from lmm_forget.models.llava_next import LlavaNext
from lmm_forget.models.llava_onevision import LlavaOnevision
from lmm_forget.models.qwen2_5_vl import Qwen25VL

FAMILIES: tuple[type[Family], ...] = (LlavaOnevision, LlavaNext, Qwen25VL)
"""Families with a file of their own; any other image-text-to-text model is a GenericFamily."""


def resolve_family(model_or_config: Any) -> Family:
    """The family of a model or configuration, bound to it. Raises ConfigError listing the known model types."""
    config = getattr(model_or_config, "config", model_or_config)
    return get_family_class(getattr(config, "model_type", None))(config)


def check_family_setting(model_config: Mapping[str, Any], family: Family, source: str) -> None:
    """Raise ConfigError where `model.family` is not the family of the model in `source`."""
    expected = model_config.get("family")
    if expected not in (None, family.name):
        is_known = expected in {cls.name for cls in FAMILIES}
        hint = "" if is_known else "; a new family needs its line in models/registry.py"
        raise ConfigError(f"model.family={expected}, but the model in {source} is a {family.name}{hint}")


def get_family_class(model_type: str | None) -> type[Family]:
    """The family class of a Transformers `model_type`; the generic one for image-text-to-text models without their own.

    Raises ConfigError listing the known ones.
    """
    known = {known_type: cls for cls in FAMILIES for known_type in cls.model_types}
    if model_type in known:
        return known[model_type]
    if is_image_text_to_text(model_type):
        return GenericFamily
    raise ConfigError(
        f"model type {model_type!r} is not supported; supported: {', '.join(sorted(known))}, "
        "and what Transformers' AutoModelForImageTextToText lists"
    )
