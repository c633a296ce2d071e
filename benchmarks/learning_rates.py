"""Choose one learning rate per recipe from a grid sweep, by target learning alone, and print the frontier.

The rule, the same for every recipe: the smallest rate whose target learning is within 10 points of the recipe's best.
A rate has a price in forgetting; the rule asks for learning that is nearly as good, without looking at the price.

    python -m lmm_forget.run -m experiment=lr_grid
    python benchmarks/learning_rates.py multirun/lr_grid

The first table is what the choice saw (target learning on the validation split) beside what it cost (held-out
forgetting, which the choice does not look at). The YAML below it goes into the model's `training.learning_rates`.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

NEAR = 10.0
"""Points of target learning that a smaller rate may cost."""


def read(folder: Path) -> list[dict[str, Any]]:
    """The results of every finished job in a sweep's folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/results.json"))]


def choose(results: list[dict[str, Any]]) -> dict[str, float]:
    """The smallest learning rate of each recipe whose target learning is within `NEAR` points of its best."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for each in results:
        if not each["config"]["data"]["validation"]:
            sys.exit(f"{each['job']['name']}: targets were scored on the test split; use experiment=lr_grid")
        learned = each["figures"]["target_learning"]["value"]
        found[each["config"]["recipe"]["name"]].append((each["config"]["training"]["learning_rate"], learned))
    return {
        recipe: min(rate for rate, learned in pairs if learned >= max(v for _, v in pairs) - NEAR)
        for recipe, pairs in sorted(found.items())
    }


def main() -> None:
    """Print the frontier as a Markdown table, then the choice as YAML."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(f"usage: python {sys.argv[0]} multirun/lr_grid")
    results = read(Path(sys.argv[1]))
    if not results:
        sys.exit(f"{sys.argv[1]}: no finished job (no */results.json)")
    chosen = choose(results)
    print("| recipe | learning rate | target learning | held-out forgetting | worst stage | chosen |")
    print("|---|---|---|---|---|---|")
    by_recipe = sorted(results, key=lambda r: (r["config"]["recipe"]["name"], r["config"]["training"]["learning_rate"]))
    for each in by_recipe:
        recipe, rate, figures = (
            each["config"]["recipe"]["name"],
            each["config"]["training"]["learning_rate"],
            each["figures"],
        )
        held = figures["heldout_forgetting"]
        mark = "yes" if chosen[recipe] == rate else ""
        print(
            f"| {recipe} | {rate:g} | {figures['target_learning']['value']:+.1f} "
            f"| {held['value']:+.1f} | {held['worst']['value']:+.1f} | {mark} |"
        )
    print("\nlearning_rates:")
    for recipe, rate in chosen.items():
        print(f"  {recipe}: {rate:g}")


if __name__ == "__main__":
    main()
