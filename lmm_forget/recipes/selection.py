"""Which parameters a recipe moves: rules over components and sublayers become an exact, strict tune plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_forget.errors import ConfigError, PlanError
from lmm_forget.models.components import COMPONENTS, ComponentMap, ParameterInfo
from lmm_forget.recipes.layer_ranges import normalize_layers, parse_layers

if TYPE_CHECKING:
    pass

STATE_BYTES_PER_TRAINABLE = 16
"""fp32 master, fp32 gradient and the two fp32 AdamW moments of one trainable element, in bytes."""


@dataclass(frozen=True)
class SelectionRule:
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

    rule: SelectionRule
    parameter_names: tuple[str, ...]
    num_parameters: int
    skipped_names: tuple[str, ...]


@dataclass(frozen=True)
class TunePlan:
    """The exact tensors that move. `trainable`, `frozen` and `unused` names together are all parameters, each once.

    `adapters` holds, for tensors that an adapter moves, the elements of that adapter: it is trained in their stead
    and merged into them at the end of a stage. `extra_state_bytes` is what a method keeps beside the training states.
    """

    recipe: str
    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    unused: tuple[str, ...]
    rule_reports: list[RuleReport]
    parameters: Mapping[str, ParameterInfo] = field(repr=False)
    adapters: Mapping[str, int] = field(default_factory=dict, repr=False)
    extra_state_bytes: int = 0

    @property
    def parameter_counts(self) -> dict[str, int]:
        """Elements per group: `{"trainable", "frozen", "unused"}`; of tensors with an adapter, the adapter's count.

        `merged` are the elements that adapters are merged into; it is there only if there are any.
        """
        counts = {
            "trainable": sum(self.adapters.get(n, self.parameters[n].numel) for n in self.trainable),
            "merged": sum(self.parameters[n].numel for n in self.adapters),
            "frozen": sum(self.parameters[n].numel for n in self.frozen),
            "unused": sum(self.parameters[n].numel for n in self.unused),
        }
        return {group: count for group, count in counts.items() if group != "merged" or self.adapters}

    @property
    def delta_bytes(self) -> int:
        """Size of a stage's delta: the tensors that move, whole, in the checkpoint's dtype, in bytes."""
        return sum(self.parameters[n].size_in_bytes for n in self.trainable)

    @property
    def state_bytes(self) -> int:
        """Memory of weights, gradients and optimizer states while training, in bytes (activations not included).

        Trained elements take 16 bytes (fp32 master, fp32 gradient, two fp32 AdamW moments); all others, those that
        adapters will be merged into among them, stay in the checkpoint's dtype. `extra_state_bytes` comes on top.
        """
        untrained_bytes = sum(self.parameters[n].size_in_bytes for n in (*self.frozen, *self.unused, *self.adapters))
        return self.parameter_counts["trainable"] * STATE_BYTES_PER_TRAINABLE + untrained_bytes + self.extra_state_bytes

    def get_trainable_names(self, component: str) -> tuple[str, ...]:
        """The trainable names of one component."""
        return tuple(n for n in self.trainable if self.parameters[n].component == component)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data: parameter counts, bytes, and per rule the tensors it selects."""
        return {
            "recipe": self.recipe,
            **self.parameter_counts,
            "delta_bytes": self.delta_bytes,
            "state_bytes": self.state_bytes,
            "rules": [
                {
                    "component": r.rule.component,
                    "sublayers": list(r.rule.sublayers) if r.rule.sublayers is not None else None,
                    "layers": r.rule.layers,
                    "tensors": len(r.parameter_names),
                    "parameters": r.num_parameters,
                    "names": list(r.parameter_names),
                }
                for r in self.rule_reports
            ],
        }


def make_tune_plan(components: ComponentMap, recipe_name: str, rules: Sequence[SelectionRule]) -> TunePlan:
    """Apply `rules` to a model.

    Parameters that can never get a gradient are `unused` whatever the rules say. Raises PlanError when there is no
    rule, or when a rule or one of its sublayers matches nothing.
    """
    if not rules:
        raise PlanError(f"recipe {recipe_name} has no rules, so nothing would move")
    reports = [_apply_rule(rule, components, recipe_name) for rule in rules]
    selected_names = {name for report in reports for name in report.parameter_names}
    parameters = {i.name: i for i in components}
    return TunePlan(
        recipe=recipe_name,
        trainable=tuple(n for n in parameters if n in selected_names),
        frozen=tuple(n for n, i in parameters.items() if n not in selected_names and not i.is_unused),
        unused=tuple(n for n, i in parameters.items() if i.is_unused),
        rule_reports=reports,
        parameters=parameters,
    )


def parse_rules(recipe_config: Mapping[str, Any]) -> list[SelectionRule]:
    """The rules of a recipe node.

    The recipe's `layers` applies to its rules for the language model or, when it has none, to its rules for the
    vision tower; a rule's own `layers` wins. Raises PlanError for a malformed rule, or for layers on a recipe without
    a rule that has layers.
    """
    name = str(recipe_config.get("name"))
    rule_configs = recipe_config.get("rules") or []
    if isinstance(rule_configs, str | Mapping) or not isinstance(rule_configs, Sequence):
        raise PlanError(f"recipe {name}: rules={rule_configs!r} must be a list of {{component, sublayers?, layers?}}")
    layers = normalize_layers(recipe_config.get("layers"))
    for rule_config in rule_configs:
        if (
            not isinstance(rule_config, Mapping)
            or "component" not in rule_config
            or set(rule_config) - {"component", "sublayers", "layers"}
        ):
            raise PlanError(
                f"recipe {name}: rule {rule_config!r} is not of the form {{component, sublayers?, layers?}}"
            )
        rule_sublayers = rule_config.get("sublayers")
        if isinstance(rule_sublayers, str) or not isinstance(rule_sublayers, Sequence | None):
            raise PlanError(f"recipe {name}: sublayers={rule_sublayers} must be a list: sublayers: [{rule_sublayers}]")
    components = {str(node["component"]) for node in rule_configs}
    layered_component = next((c for c in ("language", "vision") if c in components), None)
    if layers != "all" and layered_component is None:
        raise PlanError(f"recipe {name} has no rule with layers, so recipe.layers={layers} selects nothing; use all")
    rules = []
    for rule_config in rule_configs:
        component, sublayers = str(rule_config["component"]), rule_config.get("sublayers")
        rule_layers = rule_config.get("layers")
        rules.append(
            SelectionRule(
                component=component,
                sublayers=None if sublayers is None else tuple(str(s) for s in sublayers),
                layers=normalize_layers(rule_layers)
                if rule_layers is not None
                else (layers if component == layered_component else "all"),
            )
        )
    return rules


def load_recipe(name: str) -> dict[str, Any]:
    """A recipe of the packaged configuration as plain data. Raises ConfigError listing the recipes that exist."""
    from omegaconf import OmegaConf

    package = Path(__file__).resolve().parents[1]
    # The configuration lies inside the package in a wheel, and beside it in a checkout.
    folder = next(
        (c / "recipe" for c in (package / "conf", package.parent / "conf") if (c / "recipe").is_dir()),
        package,
    )
    recipe_names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in recipe_names:
        raise ConfigError(f"there is no recipe {name!r}; choose one of: {', '.join(recipe_names) or 'nothing'}")
    node = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    return {str(key): value for key, value in node.items()} if isinstance(node, dict) else {}


def _apply_rule(rule: SelectionRule, components: ComponentMap, recipe: str) -> RuleReport:
    error_prefix = f"recipe {recipe}, rule [{rule}]"
    trainable_components = COMPONENTS[:-1]
    if rule.component not in trainable_components:
        raise PlanError(
            f"{error_prefix}: no component {rule.component!r} that can be trained; there are: "
            f"{', '.join(trainable_components)}"
        )
    component_parameters = [i for i in components if i.component == rule.component]
    layers: frozenset[int] | None = None
    if rule.layers != "all":
        count = components.count_layers(rule.component)
        if not count:
            raise PlanError(
                f"{error_prefix}: the {rule.component} has no layers, so layers={rule.layers} selects nothing"
            )
        layers = parse_layers(rule.layers, count)
    available_sublayers = components.list_sublayers(rule.component)
    for sublayer in rule.sublayers or ():
        if sublayer not in available_sublayers:
            raise PlanError(
                f"{error_prefix}: no sublayer {sublayer!r} in the {rule.component}; there are: "
                f"{', '.join(available_sublayers)}"
            )
    matched = [
        i
        for i in component_parameters
        if (rule.sublayers is None or i.sublayer in rule.sublayers) and (layers is None or i.layer in layers)
    ]
    trainable = [i for i in matched if not i.is_unused]
    for sublayer in rule.sublayers or ():
        if not any(i.sublayer == sublayer for i in trainable):
            raise PlanError(
                f"{error_prefix}: no {sublayer!r} that gets a gradient in these layers, "
                f"which have: {_format_sublayers(component_parameters, layers)}"
            )
    if not trainable:
        raise PlanError(f"{error_prefix}: nothing in these layers gets a gradient")
    return RuleReport(
        rule=rule,
        parameter_names=tuple(i.name for i in trainable),
        num_parameters=sum(i.numel for i in trainable),
        skipped_names=tuple(i.name for i in matched if i.is_unused),
    )


def _format_sublayers(parameters: Sequence[ParameterInfo], layers: frozenset[int] | None) -> str:
    sublayers = dict.fromkeys(
        i.sublayer for i in parameters if not i.is_unused and (layers is None or i.layer in layers)
    )
    return ", ".join(sublayers) or "nothing"
