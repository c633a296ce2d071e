"""The model card of an exported stage: how it was trained, and what it learned and forgot."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2

from lmm_forget.export.exported_stage import ExportedStage

_FIGURE_TITLES = {
    "target_learning": "target learning",
    "target_forgetting": "target forgetting",
    "target_overall": "target overall",
    "heldout_forgetting": "held-out forgetting",
}
_TRAINING_FIELDS = (
    "global_batch_size",
    "epochs",
    "max_steps",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "loss",
    "vision_learning_rate",
)


def render_model_card(stage: ExportedStage) -> str:
    """The README.md of an exported folder: the YAML header that the Hugging Face hub reads, then Markdown."""
    results = stage.results
    config, suite = results["config"], results["config"]["suite"]["tasks"]
    trained_stages = results["stages"][: stage.index]
    heldout_per_stage = results["figures"]["heldout_forgetting"]["per_stage"]
    figures = {"held-out change after this stage": heldout_per_stage[stage.index - 1]} if heldout_per_stage else {}
    if stage.is_last:
        figures = {text: results["figures"][name] for name, text in _FIGURE_TITLES.items()}
    base = config["model"].get("hub_id")
    template = resources.files("lmm_forget.export").joinpath("card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["points"] = _format_estimate
    return environment.from_string(template).render(
        base=base,
        base_name=base or config["model"]["name"],
        revision=config["model"].get("revision"),
        index=stage.index,
        stages=len(results["stages"]),
        trained_stages=trained_stages,
        recipe=config["recipe"],
        method=config["recipe"]["method"],
        plan=results["plan"],
        training=config["training"],
        settings={name: config["training"].get(name) for name in _TRAINING_FIELDS},
        precision=config["hardware"]["precision"],
        seed=config["seed"],
        targets=list(dict.fromkeys(entry["task"] for entry in results["stages"])),
        suite=suite,
        before=results["base"]["scores"],
        after=stage.stage_entry["scores"],
        figures=figures,
        stand_ins=config["data"]["source"] == "tiny",
        base_hash=results["base"]["weights_hash"],
        weights_hash=stage.stage_entry["weights_hash"],
        key=stage.stage_entry["key"],
        versions=results["versions"],
    )


def _format_estimate(estimate: dict[str, Any]) -> str:
    """`+1.2 [-0.3, +2.5]`, in percentage points; a dash if the figure does not exist."""
    if estimate.get("value") is None:
        return "–"
    text = f"{estimate['value']:+.1f}"
    if estimate.get("low") is None:
        return text
    return f"{text} [{estimate['low']:+.1f}, {estimate['high']:+.1f}]"
