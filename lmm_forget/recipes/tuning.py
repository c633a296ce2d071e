"""A recipe for the user's own training loop: which parameters of a loaded model require a gradient."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from lmm_forget.errors import ConfigError
from lmm_forget.models.registry import resolve_family
from lmm_forget.recipes.method import build_method
from lmm_forget.recipes.selection import TunePlan, load_recipe, make_tune_plan, parse_rules


def tune(model: PreTrainedModel, recipe: str = "sa_proj", layers: Any = "all") -> TunePlan:
    """Set `requires_grad` on a loaded Hugging Face LMM as `recipe` says, and return the plan.

    For your own training loop: `plan = lmm_forget.tune(model, "sa_proj", layers="upper_half")`. Every parameter
    outside of the plan is frozen. Raises ConfigError for an unknown model type or recipe and for a recipe that does
    more than choose parameters (lora, lwf, wise_ft, ewc), PlanError for layers that do not fit.
    """
    recipe_config = {**load_recipe(recipe), "layers": layers}
    method = build_method(recipe_config)
    if not method.is_selection_only:
        raise ConfigError(
            f"recipe {recipe} is more than a choice of parameters: {type(method).__name__} also changes the model "
            "around training, which tune() does not do; use a recipe that only selects (sa_proj, mlp_gateup, …), "
            f"or run it: python -m lmm_forget.run recipe={recipe}"
        )
    plan = make_tune_plan(resolve_family(model).map_components(model), recipe, parse_rules(recipe_config))
    trainable = set(plan.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    return plan
