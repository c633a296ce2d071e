"""The plan of a recipe for a model that is described by its configuration alone: no weights, no network."""

from __future__ import annotations

from typing import Any

from transformers.utils import logging

from lmm_forget.models.loading import build_meta_model_from_spec
from lmm_forget.models.registry import check_family_setting, resolve_family
from lmm_forget.recipes.method import build_method
from lmm_forget.recipes.selection import TunePlan, make_tune_plan, parse_rules


def build_tune_plan(model_config: dict[str, Any], recipe_config: dict[str, Any]) -> TunePlan:
    """The plan of a `recipe` config node for the model of a `model` config node, on the meta device.

    Raises ConfigError for a model that cannot be described offline, PlanError for rules that match nothing.
    """
    logging.set_verbosity_error()
    method, rules = build_method(recipe_config), parse_rules(recipe_config)
    model = build_meta_model_from_spec(model_config)
    family = resolve_family(model)
    check_family_setting(model_config, family, str(model_config.get("path") or model_config.get("architecture")))
    plan = make_tune_plan(family.map_components(model), str(recipe_config.get("name")), rules)
    return method.adapt_plan(model, plan)
