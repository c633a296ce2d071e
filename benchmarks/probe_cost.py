"""Time and memory of the probes on the embedded model, against layers and samples, beside one evaluation of the suite.

    python benchmarks/probe_cost.py [--captions 50,100,200] [--layers 2,4,6] [--questions 200]

`--layers` keeps the first layers of the decoder only, for timing. Memory is what the probe's tensors add to the peak,
as torch's profiler does not see the allocator of the CPU: the size of the base's recorded states.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmm_forget.config import compose_config, resolve_config
from lmm_forget.evaluation.engines.hf import HuggingFaceEngine, generate_answers
from lmm_forget.evaluation.eval_set import EvalSet
from lmm_forget.evaluation.evaluate import evaluate
from lmm_forget.models.loading import LMM, assemble_model, load_model
from lmm_forget.models.weight_hashes import hash_parameters, hash_weights
from lmm_forget.probes.forward_passes import PromptSet
from lmm_forget.probes.probe_config import ProbeConfig
from lmm_forget.probes.prober import Prober
from lmm_forget.probes.token_sets import find_token_sets
from lmm_forget.progress import NullProgress
from lmm_forget.recipes.selection import make_tune_plan, parse_rules
from lmm_forget.store import Store
from lmm_forget.tasks.sample_set import limit_samples
from lmm_forget.tasks.task_loading import build_task


def shallow(config: dict[str, Any], layers: int) -> LMM:
    """The embedded model with its first `layers` decoder layers."""
    lmm = load_model(config["model"])
    inner: Any = lmm.components.text_model
    inner.layers = nn.ModuleList(list(inner.layers)[:layers])
    inner.config.num_hidden_layers = layers
    return assemble_model(lmm.model, lmm.processor, lmm.spec)


def look(config: dict[str, Any], lmm: LMM, captions: int) -> tuple[float, float, float]:
    """Seconds of a look at a moved model (in CPU time too), and MiB of the base's recorded states."""
    node = {**config["probe"], "n": captions, "residual_n": captions}
    spec = ProbeConfig.from_config(node)
    assert spec is not None
    (name, task_node), *_ = node["tasks"].items()
    task = build_task(task_node)
    prompts = PromptSet(
        task,
        task_node,
        limit_samples(task.load_samples("test"), captions, name),
        captions,
        task.fingerprint_split("test"),
    )
    with tempfile.TemporaryDirectory() as folder:
        prober = Prober(
            spec,
            lmm,
            make_tune_plan(lmm.components, "llm", parse_rules({**config["recipe"], "layers": "all"})),
            [prompts],
            find_token_sets(lmm.processor.tokenizer, ("number", "letter", "yes_no", "clock"), {}, []),
            generate_greedily=generate_answers,
            store=Store(folder),
            weights_hash=hash_weights(hash_parameters(lmm.model)),
            settings_identity={},
            batch_size=64,
        )
        prober.probe_model(prober.base_weights_hash, NullProgress(), "")
        with torch.no_grad():
            for p in lmm.components.text_model.parameters():
                p.mul_(1.001)
        wall, cpu = time.perf_counter(), time.process_time()
        prober.probe_model("moved", NullProgress(), "")
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        states = sum(path.stat().st_size for path in Path(folder).glob("probes/*.safetensors")) / 2**20
    return *seconds, states


def evaluation(config: dict[str, Any], lmm: LMM, questions: int) -> tuple[float, float, int]:
    """Seconds (wall, CPU) of asking every task of the suite, and how many questions that is."""
    tasks = [build_task(config["tasks"][name]) for name in config["suite"]["tasks"]]
    eval_sets = [EvalSet.from_task(task, "test", questions, "fail") for task in tasks]
    wall, cpu = time.perf_counter(), time.process_time()
    evaluate(lmm, eval_sets, HuggingFaceEngine(lmm))
    return time.perf_counter() - wall, time.process_time() - cpu, sum(len(eval_set.samples) for eval_set in eval_sets)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("captions", "50,100,200"), ("layers", "2,4,6")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--questions", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = resolve_config(compose_config(["probe=both", "recipe=llm"]))
    wall, cpu, n = evaluation(config, load_model(config["model"]), given.questions)
    print(f"one evaluation of the suite: {n} questions, {wall:.1f} s ({cpu:.1f} s of CPU)")
    print(f"{'layers':>6} {'captions':>8} {'seconds':>8} {'CPU':>6} {'states, MiB':>12}")
    for layers in (int(text) for text in given.layers.split(",")):
        for captions in (int(text) for text in given.captions.split(",")):
            wall, cpu, states = look(config, shallow(config, layers), captions)
            print(f"{layers:>6} {captions:>8} {wall:>8.1f} {cpu:>6.1f} {states:>12.1f}", flush=True)


if __name__ == "__main__":
    main()
