"""Judge which of three statements about forgetting hold in a sweep; small sweeps give hints only.

The statements (of arXiv 2510.08564) are: output shift goes together with forgetting; where forgetting recovers at a
later stage, the shift goes back; late MLP blocks write most of the shift. The same figures decide in all sweeps: the
probability mass of number tokens in the model's own answers (the paper's figure) and in given answers, the divergence
from the base (kl), and the loss on the given answers (nll).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from lmm_forget.metrics.shift_correlation import MIN_RUNS

DECIDING_FIGURES = (("number_mass", "free"), ("number_mass", "forced"), ("kl", "forced"), ("nll", "forced"))
SIGNIFICANCE_LEVEL = 0.05
MIN_RISES = 6
"""With fewer rises the sign test cannot be below 0.05, even if the shift goes back at all (2 · 0.5⁵ = 0.0625)."""
MIN_JOBS = 6
"""An interval from fewer jobs is too inaccurate for a verdict; it gives a hint only."""
LAYER_PARTS = ("early_attention", "late_attention", "early_mlp", "late_mlp")
VERDICT_HOLDS, VERDICT_DOES_NOT_HOLD, VERDICT_NOT_SHOWN = "holds here", "does not hold here", "not shown here"
VERDICT_HINT_HOLDS, VERDICT_HINT_DOES_NOT_HOLD = "a hint that it holds", "a hint that it does not hold"
STATEMENT_TITLES = (
    "Output shift goes together with forgetting",
    "Where forgetting recovers at a later stage, the shift goes back",
    "Late MLP blocks write most of the shift",
)


def judge_forgetting_statements(correlations: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The three statements with their evidence, from the result of `correlate_shift_with_forgetting`.

    Each is {number, statement, evidence}. Evidence is a list of {figure, prompts, mode, verdict, why}, or for the third
    statement of {figure: "folded", recipe, verdict, why}. A verdict is "holds here", "does not hold here" or "not shown
    here"; with fewer than 6 jobs, "a hint that it holds" or "a hint that it does not hold".
    """
    correlation_evidence: list[dict[str, Any]] = []
    recovery_evidence: list[dict[str, Any]] = []
    for shift in correlations["shifts"]:
        for figure, mode in DECIDING_FIGURES:
            correlation = shift["figures"].get(figure, {}).get("heldout")
            if mode != shift["mode"] or correlation is None:
                continue
            description = {"figure": figure, "prompts": shift["prompts"], "mode": mode}
            correlation_evidence.append({**description, **_judge_correlation(correlation)})
            recovery_evidence.append({**description, **_judge_recovery(shift["recovery"][figure])})
    recipes = dict.fromkeys(entry["recipe"] for entry in correlations["layers"])
    layer_evidence = [
        {"figure": "folded", "recipe": r, **_judge_late_mlp_share(correlations["layers"], r)} for r in recipes
    ]
    return [
        {"number": number, "statement": title, "evidence": evidence}
        for number, (title, evidence) in enumerate(
            zip(STATEMENT_TITLES, (correlation_evidence, recovery_evidence, layer_evidence), strict=True),
            start=1,
        )
    ]


def _judge_correlation(correlation: Mapping[str, Any]) -> dict[str, str]:
    """Judge by the sign of Spearman's rho, which is negative if a larger shift means a lower held-out mean."""
    rho, jobs = correlation["spearman"], correlation["runs"]
    if rho["value"] is None:
        return {"verdict": VERDICT_NOT_SHOWN, "why": f"{correlation['n']} models give no correlation"}
    explanation = f"Spearman {format_correlation(rho)} over {correlation['n']} models of {jobs} jobs"
    if rho["low"] is None:
        return {"verdict": VERDICT_NOT_SHOWN, "why": f"{explanation}; {jobs} jobs give no interval"}
    has_few_jobs = jobs < MIN_JOBS
    above, below = (
        (VERDICT_HINT_DOES_NOT_HOLD, VERDICT_HINT_HOLDS) if has_few_jobs else (VERDICT_DOES_NOT_HOLD, VERDICT_HOLDS)
    )
    verdict = below if rho["high"] < 0 else above if rho["low"] > 0 else VERDICT_NOT_SHOWN
    return {"verdict": verdict, "why": explanation}


def _judge_recovery(recovery: Mapping[str, Any]) -> dict[str, str]:
    """Judge by the sign test over the stages after which the held-out mean rose."""
    num_rises, num_shrunk, p = recovery["recovered"], recovery["shift_went_back"], recovery["p"]
    rho = recovery["changes"]["spearman"]
    changes = "" if rho["value"] is None else f"; all changes from stage to stage: Spearman {format_correlation(rho)}"
    if not num_rises:
        return {"verdict": VERDICT_NOT_SHOWN, "why": f"the held-out mean never rose again{changes}"}
    explanation = f"went back at {num_shrunk} of {num_rises} stages with a risen held-out mean, sign test p = {p:.2g}"
    if num_rises < MIN_RISES:
        return {"verdict": VERDICT_NOT_SHOWN, "why": f"{explanation} (too few to show anything){changes}"}
    verdict = (
        VERDICT_NOT_SHOWN
        if p >= SIGNIFICANCE_LEVEL
        else VERDICT_HOLDS
        if 2 * num_shrunk > num_rises
        else VERDICT_DOES_NOT_HOLD
    )
    return {"verdict": verdict, "why": explanation + changes}


def _judge_late_mlp_share(layer_shares: Sequence[Mapping[str, Any]], recipe: str) -> dict[str, str]:
    """Judge by whether late MLP blocks have the largest share of the shift after most of a recipe's stages."""
    recipe_shares = [entry["folded"] for entry in layer_shares if entry["recipe"] == recipe and "folded" in entry]
    recipe_shares = [parts for parts in recipe_shares if all(parts[name] is not None for name in LAYER_PARTS)]
    if not recipe_shares:
        return {"verdict": VERDICT_NOT_SHOWN, "why": "nothing was written"}
    largest_parts = [max(LAYER_PARTS, key=lambda name: parts[name]) for parts in recipe_shares]
    count = largest_parts.count("late_mlp")
    shares = {name: mean(parts[name] for parts in recipe_shares) for name in ("late_mlp", "late_attention")}
    explanation = (
        f"the largest of four parts after {count} of {len(recipe_shares)} stages; mean share {shares['late_mlp']:.2f}, "
        f"late attention {shares['late_attention']:.2f}"
    )
    verdict = VERDICT_HOLDS if 2 * count > len(recipe_shares) else VERDICT_DOES_NOT_HOLD
    return {"verdict": verdict, "why": explanation}


def format_correlation(estimate: Mapping[str, float | None]) -> str:
    """Format as "-0.82 [-0.94, -0.62]", as "-0.82" without an interval, or as "n/a" without a value."""
    if estimate["value"] is None:
        return "n/a"
    if estimate["low"] is None:
        return f"{estimate['value']:+.2f}"
    return f"{estimate['value']:+.2f} [{estimate['low']:+.2f}, {estimate['high']:+.2f}]"


def describe_resampling(correlations: Mapping[str, Any]) -> str:
    """Explain in a few sentences what the intervals resample."""
    jobs, recipes = correlations["jobs"], len({point["recipe"] for point in correlations["points"]})
    if jobs < MIN_RUNS:
        return f"No intervals: points of one job are not independent, and there are only {jobs} jobs to resample."
    caveat = " So few of them make an interval rough: take it as a hint." if jobs < 10 else ""
    if recipes < jobs:
        caveat += (
            f" They are of {recipes} recipes; jobs of one recipe resemble each other, which narrows the intervals."
        )
    return (
        f"Intervals (95 %) resample the {jobs} jobs, each with all its stages and milestones, because points of one "
        f"job are not independent.{caveat} The sign test takes stages for independent, which flatters it."
    )
