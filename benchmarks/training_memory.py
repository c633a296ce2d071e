"""Planned training memory against what is really kept, on a random LLaVA-OneVision of about 100 M parameters.

    python benchmarks/training_memory.py                        # sa_proj, mlp_gateup, llm, lora, lwf, wise_ft
    python benchmarks/training_memory.py recipes=llm steps=5

Every recipe gets a process of its own: a bf16 base, fp32 masters, bf16 autocast, a few optimizer steps on the CPU.
Planned is `TunePlan.state_bytes`; real is the sum of the storages of weights, gradients and optimizer states (and what
a method keeps beside them) at the end of a step. The resident set also holds Python, the libraries and activations.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

RECIPES = "sa_proj,mlp_gateup,llm,lora,lwf,wise_ft"
TEXT = {
    "hidden_size": 640,
    "intermediate_size": 1792,
    "num_hidden_layers": 18,
    "num_attention_heads": 10,
    "layer_types": None,
}
VISION = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}
TRAINING = {"global_batch_size": 2, "learning_rate": 1e-4, "warmup_ratio": 0.0, "max_grad_norm": 1.0}
HARDWARE = {
    "accelerator": "cpu",
    "devices": 1,
    "precision": "bf16",
    "threads": 1,
    "workers": 0,
    "micro_batch_size": 2,
}


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(recipe: str, steps: int) -> dict[str, Any]:
    """Train `steps` steps with `recipe` in this process."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    from lmm_forget.models.loading import assemble_model
    from lmm_forget.models.model_source import find_packaged_model
    from lmm_forget.recipes.method import StageContext, build_method, get_parameter_dtypes
    from lmm_forget.recipes.selection import load_recipe, make_tune_plan, parse_rules
    from lmm_forget.tiny.renderers import render_image
    from lmm_forget.training.callbacks.memory import StateMemory
    from lmm_forget.training.micro_batches import TrainItem
    from lmm_forget.training.stage_config import TrainStageConfig
    from lmm_forget.training.train_stage import train_stage

    logging.set_verbosity_error()
    node = load_recipe(recipe)
    method = build_method(node)
    folder = find_packaged_model("tiny_onevision")
    config = AutoConfig.from_pretrained(folder)
    config.text_config.update(TEXT)
    config.text_config.layer_types = ["full_attention"] * TEXT["num_hidden_layers"]
    config.vision_config.update(VISION)
    processor = AutoProcessor.from_pretrained(folder)
    before = resident()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    lmm = assemble_model(model.eval(), processor, {"name": "random"})
    plan = method.adapt_plan(model, make_tune_plan(lmm.components, recipe, parse_rules(node)))
    loaded = resident()
    drawn = [render_image("cub200", "train", i) for i in range(steps * TRAINING["global_batch_size"])]
    items = [TrainItem(f"s{i}", d.questions[0].text, [d.image], d.questions[0].answers[0]) for i, d in enumerate(drawn)]
    method.start_stage(StageContext(plan, get_parameter_dtypes(lmm.model)), lmm, [], None)
    memory = StateMemory()
    train_stage(
        lmm,
        plan,
        method,
        items,
        TrainStageConfig(
            training_config=TRAINING,
            hardware_config=HARDWARE,
            seed=0,
            task="memory",
            extra_callbacks=[memory],
        ),
    )
    real = memory.measurements[-1]
    return {
        "recipe": recipe,
        "parameters": sum(info.numel for info in lmm.components),
        "trained": plan.parameter_counts["trainable"],
        "planned": plan.state_bytes,
        "real": real.total,
        "weights": real.weights,
        "gradients": real.gradients,
        "optimizer": real.optimizer,
        "held": real.extra_state,
        "resident_before": before,
        "resident_loaded": loaded,
        "resident_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "steps": len(memory.measurements),
    }


def main() -> None:
    """Measure each recipe in a process of its own and print a Markdown table; exit 1 beyond 1 %."""
    given = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    odd = [w for w in sys.argv[1:] if w != "--here" and w.partition("=")[0] not in ("recipes", "steps")]
    if odd:
        sys.exit(f"{odd[0]}: not known; write recipes=llm,lora or steps=5")
    recipes, steps = given.get("recipes", RECIPES).split(","), int(given.get("steps", "3"))
    if "--here" in sys.argv:
        print("\n" + json.dumps(measure(recipes[0], steps)))
        return
    print("| recipe | trained | planned | real | apart | resident before the model | loaded | peak |")
    print("|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for recipe in recipes:
        line = [sys.executable, __file__, "--here", f"recipes={recipe}", f"steps={steps}"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        m = json.loads(done.stdout.strip().splitlines()[-1])
        apart = m["real"] / m["planned"] - 1
        worst = max(worst, abs(apart))
        mb = {k: f"{m[k] / 1e6:,.1f} MB" for k in ("planned", "real")}
        rss = [f"{m[k] / 1e6:,.0f} MB" for k in ("resident_before", "resident_loaded", "resident_peak")]
        print(
            f"| {recipe} | {m['trained'] / 1e6:,.1f} M of {m['parameters'] / 1e6:,.1f} M | {mb['planned']} "
            f"| {mb['real']} | {100 * apart:+.3f} % | {' | '.join(rss)} |",
            flush=True,
        )
    sys.exit(1 if worst > 0.01 else 0)


if __name__ == "__main__":
    main()
