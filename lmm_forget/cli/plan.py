"""`lmm-forget plan`: which tensors a recipe would move in a model, without weights and without a network."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmm_forget.cli.parser import Parser, run_command, take_format
from lmm_forget.errors import ConfigError

if TYPE_CHECKING:
    from lmm_forget.recipes.selection import TunePlan

EXAMPLES = """\
examples:
  lmm-forget plan model=llava_onevision_7b recipe=sa_proj
  lmm-forget plan model=qwen2_5_vl_3b recipe=mlp_gateup recipe.layers=upper_half
  lmm-forget plan model=llava_next_8b recipe=llm recipe.layers=14:28 format=json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan that `argv` (default: the command line) asks for; returns the exit code (2 for a bad request)."""
    return run_command(_plan, argv)


def _plan(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="lmm-forget plan",
        description="Show which tensors a recipe moves in a model, a stage's delta, and what training needs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="choices as for lmm_forget.run: model=…, recipe=…, recipe.layers=…; format=table|json",
    )
    parser.add_argument(
        "--config-dir", "-cd", metavar="DIR", help="a folder with groups of your own (recipe/mine.yaml)"
    )
    given = parser.read(arguments)
    form, overrides = take_format(given.overrides)
    spec, recipe = _choices(overrides, given.config_dir)
    plan = plan_for(spec, recipe)
    if form == "json":
        print(json.dumps({"model": spec.get("name"), **plan.to_json()}, indent=2))
    else:
        _show(str(spec.get("name")), plan)


def plan_for(spec: dict[str, Any], recipe: dict[str, Any]) -> TunePlan:
    """The plan of a `recipe` config node for the model of a `model` config node, on the meta device.

    Raises ConfigError for a model that cannot be described offline, PlanError for rules that match nothing.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    from lmm_forget.models.family import family_for
    from lmm_forget.models.loading import skeleton_for
    from lmm_forget.recipes.method import build_method
    from lmm_forget.recipes.selection import make_plan, rules_from_config

    method, rules = build_method(recipe), rules_from_config(recipe)
    model = skeleton_for(spec)
    plan = make_plan(family_for(model).components(model), str(recipe.get("name")), rules)
    return method.planned(model, plan)


def _choices(overrides: Sequence[str], config_dir: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `model` and `recipe` nodes as plain data."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from lmm_forget.config import compose, one_line

    cfg = compose(overrides, config_dir)
    nodes: list[dict[str, Any]] = []
    for group in ("model", "recipe"):
        try:
            node = OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ConfigError(one_line(error)) from error
        if not isinstance(node, dict):
            raise ConfigError(f"{group}={node} is not a {group} configuration")
        nodes.append({str(key): value for key, value in node.items()})
    return nodes[0], nodes[1]


def collapsed(names: Sequence[str]) -> list[str]:
    """Tensor names for people, one line per parent module and its layers: `….layers.{0-27}.mlp: gate_proj, up_proj`."""
    stacks: dict[tuple[str, str], list[int]] = {}
    for name in names:
        owner = re.sub(r"\.(weight|bias)$", "", name)
        match = re.search(r"\.(\d+)(?=\.)", owner)
        key = (owner[: match.start()], owner[match.end() :]) if match else (owner, "")
        stacks.setdefault(key, []).extend([int(match.group(1))] if match else [])
    lines: dict[str, list[str]] = {}
    for (head, tail), indices in stacks.items():
        parent, _, leaf = (f"{head}.{_span(indices)}{tail}" if indices else head).rpartition(".")
        lines.setdefault(parent, []).append(leaf)
    return [
        f"{parent}: {', '.join(leaves)}" if parent else ", ".join(leaves) for parent, leaves in lines.items()
    ]


def _span(indices: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for i in sorted(set(indices)):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(runs) == 1 and runs[0][0] == runs[0][1] else "{" + text + "}"


def _show(model: str, plan: TunePlan) -> None:
    """Print the plan for people; readable at 80 columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(title=f"{plan.recipe} on {model}", title_justify="left")
    table.add_column("rule")
    table.add_column("tensors", justify="right")
    table.add_column("parameters", justify="right")
    for report in plan.rules:
        table.add_row(Text(str(report.rule)), str(len(report.names)), _millions(report.parameters))
    console.print(table)
    whole = [name for name in plan.trainable if name not in plan.adapters]
    chosen: dict[str, Sequence[str]] = {
        "moves, weights and biases of": whole,
        "moves by an adapter, weights of": list(plan.adapters),
        "never gets a gradient (frozen, not counted), weights and biases of": plan.unused,
    }
    for title, names in chosen.items():
        if names:
            console.print(Text(f"{title}:"))
            for line in collapsed(names):
                console.print(Text(f"  {line}"), style="dim")
    tensors = {
        "trainable": len(whole) + 2 * len(plan.adapters),
        "merged": len(plan.adapters),
        "frozen": len(plan.frozen),
        "unused": len(plan.unused),
    }
    for group, count in plan.counts.items():
        console.print(Text(f"{group:<22} {_millions(count):>10} parameters, {tensors[group]} tensors"))
    console.print(
        Text(f"delta of one stage     {_size(plan.delta_bytes):>10} (what moves, in the checkpoint's dtype)")
    )
    console.print(
        Text(
            f"weights, grads, Adam   {_size(plan.state_bytes):>10} (fp32 for what is trained; no activations)"
        )
    )
    if plan.held_bytes:
        console.print(
            Text(f"  of it kept beside    {_size(plan.held_bytes):>10} (the previous stage's tensors)")
        )


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"
