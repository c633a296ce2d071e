"""Which of three statements about forgetting hold in a sweep, said as carefully as its size allows.

The statements (of arXiv 2510.08564): output shift goes together with forgetting; where forgetting recovers at
a later stage, the shift goes back; late MLP blocks write most of it. Which figures decide is fixed here, for all sweeps
alike: the mass of number tokens in the model's own answers (the paper's figure) and along given ones, and of the whole
distribution the divergence from the base (kl) and the loss on the given answers (nll).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from lmm_forget.metrics.connection import FEWEST_RUNS

DECIDING = (("number_mass", "free"), ("number_mass", "forced"), ("kl", "forced"), ("nll", "forced"))
LEVEL = 0.05
FEWEST_RISES = 6
"""With fewer rises not even all of them going back gives a sign test below 0.05 (2 · 0.5⁵ = 0.0625)."""
FEWEST_JOBS = 6
"""An interval that resamples fewer jobs is too rough to settle anything, on whichever side of zero it lies."""
PARTS = ("early_attention", "late_attention", "early_mlp", "late_mlp")
HOLDS, AGAINST, OPEN = "holds here", "does not hold here", "not shown here"
HINT_FOR, HINT_AGAINST = "a hint that it holds", "a hint that it does not hold"
TITLES = (
    "Output shift goes together with forgetting",
    "Where forgetting recovers at a later stage, the shift goes back",
    "Late MLP blocks write most of the shift",
)


def statements(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The three statements with their evidence, from what `connection` found.

    Each is {number, statement, evidence}; an evidence is {figure, prompts, mode, verdict, why} and, for the third,
    {figure: "folded", recipe, verdict, why}. A verdict is "holds here", "does not hold here", "not shown here", or,
    where fewer than 6 jobs were resampled, "a hint that it holds" or "a hint that it does not hold".
    """
    one: list[dict[str, Any]] = []
    two: list[dict[str, Any]] = []
    for shift in found["shifts"]:
        for figure, mode in DECIDING:
            against = shift["figures"].get(figure, {}).get("heldout")
            if mode != shift["mode"] or against is None:
                continue
            where = {"figure": figure, "prompts": shift["prompts"], "mode": mode}
            one.append({**where, **_goes_together(against)})
            two.append({**where, **_goes_back(shift["recovery"][figure])})
    recipes = dict.fromkeys(entry["recipe"] for entry in found["layers"])
    three = [{"figure": "folded", "recipe": r, **_late_mlp(found["layers"], r)} for r in recipes]
    return [
        {"number": number, "statement": title, "evidence": evidence}
        for number, (title, evidence) in enumerate(zip(TITLES, (one, two, three), strict=True), start=1)
    ]


def _goes_together(against: Mapping[str, Any]) -> dict[str, str]:
    """By the sign of Spearman's rho: a larger shift, a lower held-out mean."""
    rho, jobs = against["spearman"], against["runs"]
    if rho["value"] is None:
        return {"verdict": OPEN, "why": f"{against['n']} models give no correlation"}
    said = f"Spearman {told(rho)} over {against['n']} models of {jobs} jobs"
    if rho["low"] is None:
        return {"verdict": OPEN, "why": f"{said}; {jobs} jobs give no interval"}
    few = jobs < FEWEST_JOBS
    above, below = (HINT_AGAINST, HINT_FOR) if few else (AGAINST, HOLDS)
    verdict = below if rho["high"] < 0 else above if rho["low"] > 0 else OPEN
    return {"verdict": verdict, "why": said}


def _goes_back(recovery: Mapping[str, Any]) -> dict[str, str]:
    """By the sign test over the stages after which the held-out mean had risen."""
    risen, back, p = recovery["recovered"], recovery["shift_went_back"], recovery["p"]
    rho = recovery["changes"]["spearman"]
    changes = "" if rho["value"] is None else f"; all changes from stage to stage: Spearman {told(rho)}"
    if not risen:
        return {"verdict": OPEN, "why": f"the held-out mean never rose again{changes}"}
    said = f"went back at {back} of {risen} stages with a risen held-out mean, sign test p = {p:.2g}"
    if risen < FEWEST_RISES:
        return {"verdict": OPEN, "why": f"{said} (too few to show anything){changes}"}
    verdict = OPEN if p >= LEVEL else HOLDS if 2 * back > risen else AGAINST
    return {"verdict": verdict, "why": said + changes}


def _late_mlp(layers: Sequence[Mapping[str, Any]], recipe: str) -> dict[str, str]:
    """By which half of which kind of block has the largest share, after most of a recipe's stages."""
    mine = [entry["folded"] for entry in layers if entry["recipe"] == recipe and "folded" in entry]
    mine = [parts for parts in mine if all(parts[name] is not None for name in PARTS)]
    if not mine:
        return {"verdict": OPEN, "why": "nothing was written"}
    first = [max(PARTS, key=lambda name: parts[name]) for parts in mine]
    count = first.count("late_mlp")
    shares = {name: mean(parts[name] for parts in mine) for name in ("late_mlp", "late_attention")}
    said = (
        f"the largest of four parts after {count} of {len(mine)} stages; mean share {shares['late_mlp']:.2f}, "
        f"late attention {shares['late_attention']:.2f}"
    )
    verdict = HOLDS if 2 * count > len(mine) else AGAINST
    return {"verdict": verdict, "why": said}


def told(estimate: Mapping[str, float | None]) -> str:
    """`-0.82 [-0.94, -0.62]`, the value alone where there is no interval, `n/a` where there is no value."""
    if estimate["value"] is None:
        return "n/a"
    if estimate["low"] is None:
        return f"{estimate['value']:+.2f}"
    return f"{estimate['value']:+.2f} [{estimate['low']:+.2f}, {estimate['high']:+.2f}]"


def resampled(found: Mapping[str, Any]) -> str:
    """What the intervals rest on, in a few sentences."""
    jobs, recipes = found["jobs"], len({point["recipe"] for point in found["points"]})
    if jobs < FEWEST_RUNS:
        return f"No intervals: points of one job are not independent, and there are only {jobs} jobs to resample."
    few = " So few of them make an interval rough: take it as a hint." if jobs < 10 else ""
    if recipes < jobs:
        few += f" They are of {recipes} recipes; jobs of one recipe resemble each other, which narrows the intervals."
    return (
        f"Intervals (95 %) resample the {jobs} jobs, each with all its stages and milestones, because points of one "
        f"job are not independent.{few} The sign test takes stages for independent, which flatters it."
    )
