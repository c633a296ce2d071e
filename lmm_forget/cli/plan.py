"""`lmm-forget plan`: which tensors a recipe would move in a model, without weights and without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmm_forget.cli.command import CONFIG_DIR, Arguments, Command
from lmm_forget.errors import ConfigError

if TYPE_CHECKING:
    from lmm_forget.recipes.selection import TunePlan


def _show_plan(arguments: Arguments) -> None:
    spec, recipe = _compose_model_and_recipe(arguments.overrides, arguments.get("--config-dir"))
    from lmm_forget.recipes.offline_plan import build_tune_plan

    plan = build_tune_plan(spec, recipe)
    if arguments.output_format == "json":
        print(json.dumps({"model": spec.get("name"), **plan.to_json()}, indent=2))
    else:
        _print_plan(str(spec.get("name")), plan)


def _compose_model_and_recipe(
    overrides: Sequence[str], config_dir: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `model` and `recipe` nodes as plain data."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from lmm_forget.config import compose_config, format_config_error

    cfg = compose_config(overrides, config_dir)
    nodes: list[dict[str, Any]] = []
    for group in ("model", "recipe"):
        try:
            node = OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ConfigError(format_config_error(error)) from error
        if not isinstance(node, dict):
            raise ConfigError(f"{group}={node} is not a {group} configuration")
        nodes.append({str(key): value for key, value in node.items()})
    return nodes[0], nodes[1]


def group_tensor_names(tensor_names: Sequence[str]) -> list[str]:
    """Tensor names for people, one line per parent module and its layers: `….layers.{0-27}.mlp: gate_proj, up_proj`."""
    stacks: dict[tuple[str, str], list[int]] = {}
    for name in tensor_names:
        owner = re.sub(r"\.(weight|bias)$", "", name)
        match = re.search(r"\.(\d+)(?=\.)", owner)
        key = (owner[: match.start()], owner[match.end() :]) if match else (owner, "")
        stacks.setdefault(key, []).extend([int(match.group(1))] if match else [])
    lines: dict[str, list[str]] = {}
    for (head, tail), indices in stacks.items():
        parent, _, leaf = (f"{head}.{_format_layer_range(indices)}{tail}" if indices else head).rpartition(".")
        lines.setdefault(parent, []).append(leaf)
    return [f"{parent}: {', '.join(leaves)}" if parent else ", ".join(leaves) for parent, leaves in lines.items()]


def _format_layer_range(indices: Sequence[int]) -> str:
    ranges: list[list[int]] = []
    for i in sorted(set(indices)):
        if ranges and i == ranges[-1][1] + 1:
            ranges[-1][1] = i
        else:
            ranges.append([i, i])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    return text if len(ranges) == 1 and ranges[0][0] == ranges[0][1] else "{" + text + "}"


def _print_plan(model_name: str, plan: TunePlan) -> None:
    """Print the plan for people; readable at 80 columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(title=f"{plan.recipe} on {model_name}", title_justify="left")
    table.add_column("rule")
    table.add_column("tensors", justify="right")
    table.add_column("parameters", justify="right")
    for report in plan.rule_reports:
        table.add_row(Text(str(report.rule)), str(len(report.parameter_names)), _format_millions(report.num_parameters))
    console.print(table)
    trainable_names = [name for name in plan.trainable if name not in plan.adapters]
    names_by_title: dict[str, Sequence[str]] = {
        "moves, weights and biases of": trainable_names,
        "moves by an adapter, weights of": list(plan.adapters),
        "never gets a gradient (frozen, not counted), weights and biases of": plan.unused,
    }
    for title, names in names_by_title.items():
        if names:
            console.print(Text(f"{title}:"))
            for line in group_tensor_names(names):
                console.print(Text(f"  {line}"), style="dim")
    tensors = {
        "trainable": len(trainable_names) + 2 * len(plan.adapters),
        "merged": len(plan.adapters),
        "frozen": len(plan.frozen),
        "unused": len(plan.unused),
    }
    for group, count in plan.parameter_counts.items():
        console.print(Text(f"{group:<22} {_format_millions(count):>10} parameters, {tensors[group]} tensors"))
    console.print(
        Text(f"delta of one stage     {_format_bytes(plan.delta_bytes):>10} (what moves, in the checkpoint's dtype)")
    )
    console.print(
        Text(f"weights, grads, Adam   {_format_bytes(plan.state_bytes):>10} (fp32 for what is trained; no activations)")
    )
    if plan.extra_state_bytes:
        console.print(
            Text(f"  of it kept beside    {_format_bytes(plan.extra_state_bytes):>10} (what the method keeps)")
        )


def _format_bytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.2f} MB"


def _format_millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"


COMMAND = Command(
    name="plan",
    summary="show which parameters a recipe moves, without loading weights",
    run=_show_plan,
    usage="[key=value ...]",
    description="""
Prints the tensors that a recipe moves in a model, the size of a stage's delta, and the memory that training needs.
Choices are those of `lmm-forget run`: model=…, recipe=…, recipe.layers=…""",
    options=(CONFIG_DIR,),
    formats=("table", "json"),
    override_prefixes=("",),
    examples=(
        "lmm-forget plan model=llava_onevision_7b recipe=sa_proj",
        "lmm-forget plan model=qwen2_5_vl_3b recipe=mlp_gateup recipe.layers=upper_half",
        "lmm-forget plan model=llava_next_8b recipe=llm recipe.layers=14:28 format=json",
    ),
)
main = COMMAND.main
