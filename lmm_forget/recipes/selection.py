"""Which parameters a recipe moves: rules over components and sublayers become an exact, strict tune plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.models.components import COMPONENTS, ComponentMap, ParameterInfo
from lmm_forget.recipes.layers import canonical, parse_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATE_BYTES_PER_TRAINABLE = 16
"""fp32 master, fp32 gradient and the two fp32 AdamW moments of one trainable element, in bytes."""


@dataclass(frozen=True)
class Rule:
    """Selects parameters: a component, some of its sublayers (None: all) and some of its layers.

    With `layers` other than "all" only parameters inside the layers are selected (no embeddings, final norm, head).
    """

    component: str
    sublayers: tuple[str, ...] | None = None
    layers: str = "all"

    def __str__(self) -> str:
        what = "all sublayers" if self.sublayers is None else "+".join(self.sublayers)
        return f"{self.component}: {what}, layers {self.layers}"


@dataclass(frozen=True)
class RuleReport:
    """What one rule selected: tensor names in model order, and how many elements are trained for them.

    `skipped` names never get a gradient.
    """

    rule: Rule
    names: tuple[str, ...]
    parameters: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class TunePlan:
    """The exact tensors that move. `trainable`, `frozen` and `unused` names together are all parameters, each once.

    `adapters` holds, for tensors that an adapter moves, the elements of that adapter: it is trained in their stead
    and merged into them at the end of a stage. `held_bytes` is what a method keeps beside the training states.
    """

    recipe: str
    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    unused: tuple[str, ...]
    rules: list[RuleReport]
    parameters: Mapping[str, ParameterInfo] = field(repr=False)
    adapters: Mapping[str, int] = field(default_factory=dict, repr=False)
    held_bytes: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Elements per group: `{"trainable", "frozen", "unused"}`; of tensors with an adapter, the adapter's count.

        `merged` are the elements that adapters are merged into; it is there only if there are any.
        """
        found = {
            "trainable": sum(self.adapters.get(n, self.parameters[n].numel) for n in self.trainable),
            "merged": sum(self.parameters[n].numel for n in self.adapters),
            "frozen": sum(self.parameters[n].numel for n in self.frozen),
            "unused": sum(self.parameters[n].numel for n in self.unused),
        }
        return {group: count for group, count in found.items() if group != "merged" or self.adapters}

    @property
    def delta_bytes(self) -> int:
        """Size of a stage's delta: the tensors that move, whole, in the checkpoint's dtype, in bytes."""
        return sum(self.parameters[n].bytes for n in self.trainable)

    @property
    def state_bytes(self) -> int:
        """Memory of weights, gradients and optimizer states while training, in bytes (activations not included).

        Trained elements take 16 bytes (fp32 master, fp32 gradient, two fp32 AdamW moments); all others, those that
        adapters will be merged into among them, stay in the checkpoint's dtype. `held_bytes` comes on top.
        """
        still = sum(self.parameters[n].bytes for n in (*self.frozen, *self.unused, *self.adapters))
        return self.counts["trainable"] * STATE_BYTES_PER_TRAINABLE + still + self.held_bytes

    def names(self, component: str) -> tuple[str, ...]:
        """The trainable names of one component."""
        return tuple(n for n in self.trainable if self.parameters[n].component == component)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data: parameter counts, bytes, and per rule the tensors it selects."""
        return {
            "recipe": self.recipe,
            **self.counts,
            "delta_bytes": self.delta_bytes,
            "state_bytes": self.state_bytes,
            "rules": [
                {
                    "component": r.rule.component,
                    "sublayers": list(r.rule.sublayers) if r.rule.sublayers is not None else None,
                    "layers": r.rule.layers,
                    "tensors": len(r.names),
                    "parameters": r.parameters,
                    "names": list(r.names),
                }
                for r in self.rules
            ],
        }


def make_plan(components: ComponentMap, recipe_name: str, rules: Sequence[Rule]) -> TunePlan:
    """Apply `rules` to a model.

    Parameters that can never get a gradient are `unused` whatever the rules say. Raises PlanError when there is no
    rule, or when a rule or one of its sublayers matches nothing.
    """
    if not rules:
        raise PlanError(f"recipe {recipe_name} has no rules, so nothing would move")
    reports = [_apply(rule, components, recipe_name) for rule in rules]
    chosen = {name for report in reports for name in report.names}
    info = {i.name: i for i in components}
    return TunePlan(
        recipe=recipe_name,
        trainable=tuple(n for n in info if n in chosen),
        frozen=tuple(n for n, i in info.items() if n not in chosen and not i.unused),
        unused=tuple(n for n, i in info.items() if i.unused),
        rules=reports,
        parameters=info,
    )


def rules_from_config(recipe: Mapping[str, Any]) -> list[Rule]:
    """The rules of a recipe node.

    The recipe's `layers` applies to its rules for the language model or, when it has none, to its rules for the
    vision tower; a rule's own `layers` wins. Raises PlanError for a malformed rule, or for layers on a recipe without
    a rule that has layers.
    """
    name = str(recipe.get("name"))
    nodes = recipe.get("rules") or []
    if isinstance(nodes, str | Mapping) or not isinstance(nodes, Sequence):
        raise PlanError(
            f"recipe {name}: rules={nodes!r} must be a list of {{component, sublayers?, layers?}}"
        )
    layers = canonical(recipe.get("layers"))
    for node in nodes:
        if (
            not isinstance(node, Mapping)
            or "component" not in node
            or set(node) - {"component", "sublayers", "layers"}
        ):
            raise PlanError(
                f"recipe {name}: rule {node!r} is not of the form {{component, sublayers?, layers?}}"
            )
        chosen = node.get("sublayers")
        if isinstance(chosen, str) or not isinstance(chosen, Sequence | None):
            raise PlanError(f"recipe {name}: sublayers={chosen} must be a list: sublayers: [{chosen}]")
    present = {str(node["component"]) for node in nodes}
    layered = next((c for c in ("language", "vision") if c in present), None)
    if layers != "all" and layered is None:
        raise PlanError(
            f"recipe {name} has no rule with layers, so recipe.layers={layers} selects nothing; use all"
        )
    rules = []
    for node in nodes:
        component, sublayers = str(node["component"]), node.get("sublayers")
        own = node.get("layers")
        rules.append(
            Rule(
                component=component,
                sublayers=None if sublayers is None else tuple(str(s) for s in sublayers),
                layers=canonical(own) if own is not None else (layers if component == layered else "all"),
            )
        )
    return rules


def tune(model: PreTrainedModel, recipe: str = "sa_proj", layers: Any = "all") -> TunePlan:
    """Set `requires_grad` on a loaded Hugging Face LMM as `recipe` says, and return the plan.

    For your own training loop: `plan = lmm_forget.tune(model, "sa_proj", layers="upper_half")`. Every parameter
    outside of the plan is frozen. Raises ConfigError for an unknown model type or recipe and for a recipe that does
    more than choose parameters (lora, lwf, wise_ft), PlanError for layers that do not fit.
    """
    from lmm_forget.models.family import family_for
    from lmm_forget.recipes.method import build_method

    node = {**load_recipe(recipe), "layers": layers}
    method = build_method(node)
    if not method.only_selects:
        raise ConfigError(
            f"recipe {recipe} is more than a choice of parameters: {type(method).__name__} also changes the model "
            "around training, which tune() does not do; use a recipe that only selects (sa_proj, mlp_gateup, …), "
            f"or run it: python -m lmm_forget.run recipe={recipe}"
        )
    plan = make_plan(family_for(model).components(model), recipe, rules_from_config(node))
    trainable = set(plan.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    return plan


def load_recipe(name: str) -> dict[str, Any]:
    """A recipe of the packaged configuration as plain data. Raises ConfigError listing the recipes that exist."""
    from omegaconf import OmegaConf

    package = Path(__file__).resolve().parents[1]
    # The configuration lies inside the package in a wheel, and beside it in a checkout.
    folder = next(
        (c / "recipe" for c in (package / "conf", package.parent / "conf") if (c / "recipe").is_dir()),
        package,
    )
    there = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in there:
        raise ConfigError(f"there is no recipe {name!r}; choose one of: {', '.join(there) or 'nothing'}")
    node = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    return {str(key): value for key, value in node.items()} if isinstance(node, dict) else {}


def _apply(rule: Rule, components: ComponentMap, recipe: str) -> RuleReport:
    where = f"recipe {recipe}, rule [{rule}]"
    usable = COMPONENTS[:-1]
    if rule.component not in usable:
        raise PlanError(
            f"{where}: no component {rule.component!r} that can be trained; there are: {', '.join(usable)}"
        )
    inside = [i for i in components if i.component == rule.component]
    layers: frozenset[int] | None = None
    if rule.layers != "all":
        count = components.layers(rule.component)
        if not count:
            raise PlanError(
                f"{where}: the {rule.component} has no layers, so layers={rule.layers} selects nothing"
            )
        layers = parse_layers(rule.layers, count)
    there = components.sublayers(rule.component)
    for sublayer in rule.sublayers or ():
        if sublayer not in there:
            raise PlanError(
                f"{where}: no sublayer {sublayer!r} in the {rule.component}; there are: {', '.join(there)}"
            )
    matched = [
        i
        for i in inside
        if (rule.sublayers is None or i.sublayer in rule.sublayers) and (layers is None or i.layer in layers)
    ]
    moving = [i for i in matched if not i.unused]
    for sublayer in rule.sublayers or ():
        if not any(i.sublayer == sublayer for i in moving):
            raise PlanError(
                f"{where}: no {sublayer!r} that gets a gradient in these layers, "
                f"which have: {_sublayers_in(inside, layers)}"
            )
    if not moving:
        raise PlanError(f"{where}: nothing in these layers gets a gradient")
    return RuleReport(
        rule=rule,
        names=tuple(i.name for i in moving),
        parameters=sum(i.numel for i in moving),
        skipped=tuple(i.name for i in matched if i.unused),
    )


def _sublayers_in(infos: Sequence[ParameterInfo], layers: frozenset[int] | None) -> str:
    there = dict.fromkeys(i.sublayer for i in infos if not i.unused and (layers is None or i.layer in layers))
    return ", ".join(there) or "nothing"
