"""`python -m lmm_forget.tiny.pretrain`: pretrain a tiny LMM from random weights on a laptop.

It trains on captions first, then on the benchmarks, never on the five skills, because experiments train those. A run is
seeded and can be resumed. Gradients are averaged over `--workers` single-threaded processes; on two cores that is
faster than one process with two threads. Every image is new; none is used twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Spinning barriers can make a step twenty times slower if another process needs the core. Set before torch starts.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmm_forget.distributed.stop_signals import die_with_parent
from lmm_forget.tiny import renderers
from lmm_forget.tiny.architectures import BUILDERS, WEIGHTS, fit_tokenizer
from lmm_forget.tiny.image_inputs import make_input_builder


@dataclass(frozen=True)
class PretrainPhase:
    """A phase of the run, which ends at the fraction `end_fraction` of its steps.

    `mixture` has the relative frequencies of the renderers. An answer of n tokens has the weight n ** `length_power` in
    the loss (1: every token has the same weight).
    """

    end_fraction: float
    mixture: Mapping[str, float]
    length_power: float = 1.0


# Training starts with few kinds of long captions without ambiguity: with many kinds or short answers the loss stays at
# the answers' prior for a thousand steps. Later, short answers get more weight, so that long ones do not dominate.
FIRST_MIXTURE = {"scene_by_place": 1.0, "cells": 1.0, "bars": 1.0, "letters": 1.0, "hands": 1.0}
CAPTION_MIXTURE = {**dict.fromkeys(renderers.CAPTIONS, 1.0), "cells": 1.5}
QUESTION_MIXTURE = {
    **dict.fromkeys(renderers.BENCHMARKS, 1.0),
    "infovqa": 1.2,
    "seedbench": 1.5,
    "mmstar": 2.5,
}
PHASES = (
    PretrainPhase(1 / 8, FIRST_MIXTURE),
    PretrainPhase(1 / 3, {**CAPTION_MIXTURE, **{name: 0.4 * weight for name, weight in QUESTION_MIXTURE.items()}}),
    PretrainPhase(5 / 6, {**{name: 0.5 * weight for name, weight in CAPTION_MIXTURE.items()}, **QUESTION_MIXTURE}, 0.5),
    PretrainPhase(
        1.0,
        {
            **{name: 0.5 * weight for name, weight in CAPTION_MIXTURE.items()},
            **QUESTION_MIXTURE,
            "salad": 6.0,
        },
        0.5,
    ),
)
# Two cycles of the learning rate, (fraction of the steps at its end, peak as a fraction of --lr). The second one, short
# and low, trains the output head on words that no image requires.
LEARNING_RATE_CYCLES = ((5 / 6, 1.0), (1.0, 0.4))
# Families whose scores are too low after these steps get further steps with one more cycle.
EXTRA_STEPS = {"next": 600}
LAST_PHASE = PretrainPhase(2.0, {**PHASES[-1].mixture, "ai2d": 3.0, "salad": 3.0}, 0.5)
WARMUP_RATIO = 0.05
IGNORE_INDEX = -100
ADAM_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")


class PretrainBatches:
    """Renders, tokenises and pads training batches; the same (step, worker) always gives the same batch."""

    def __init__(self, processor: Any, seed: int, batch_size: int, total_steps: int) -> None:
        self.processor, self.seed, self.size, self.steps = processor, seed, batch_size, total_steps
        self.token_cache: dict[str, list[int]] = {}
        self.input_builder = make_input_builder(processor)
        head, self.question_prefix, self.prompt_tail = self._split_chat_template()
        position = head.index(self.input_builder.image_token_id)
        image_tokens = [self.input_builder.image_token_id] * self.input_builder.tokens_per_image
        self.prompt_head = head[:position] + image_tokens + head[position + 1 :]
        self.eos_token_id = processor.tokenizer.eos_token_id
        self.pad_token_id = processor.tokenizer.pad_token_id

    def _split_chat_template(self) -> tuple[list[int], str, list[int]]:
        """Ids up to the last special token before the question, text from there to the question, ids after it."""
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\0"}]}]
        text = self.processor.apply_chat_template(turn, add_generation_prompt=True)
        head, tail = text.split("\0")
        special = [token.content for token in self.processor.tokenizer.added_tokens_decoder.values()]
        end = max(head.rindex(token) + len(token) for token in special if token in head)
        return self._tokenize(head[:end]), head[end:], self._tokenize(tail)

    def _tokenize(self, text: str) -> list[int]:
        if text not in self.token_cache:
            self.token_cache[text] = self.processor.tokenizer(text, add_special_tokens=False).input_ids
        return self.token_cache[text]

    def get_phase(self, step: int) -> PretrainPhase:
        """The phase of a step."""
        return next((phase for phase in PHASES if step < phase.end_fraction * self.steps), LAST_PHASE)

    def sample_renderer_names(self, rng: random.Random, step: int) -> list[str]:
        """The names of the renderers for the samples of a step's batch."""
        mixture = self.get_phase(step).mixture
        return rng.choices(list(mixture), list(mixture.values()), k=self.size)

    def make_training_batch(self, step: int, worker: int) -> tuple[dict[str, Tensor], Tensor]:
        """One worker's share of a step's batch: (model inputs, labels)."""
        rng = random.Random(f"pretrain/{self.seed}/{step}/{worker}")
        samples = []
        for name in self.sample_renderer_names(rng, step):
            rendered = renderers.RENDERERS[name](rng)
            samples.append((name, rendered.image, rng.choice(rendered.questions)))
        return self.collate_samples(samples)

    def collate_samples(self, samples: list[tuple[str, Any, Any]]) -> tuple[dict[str, Tensor], Tensor]:
        """Right-padded model inputs and labels [n, L] (prompt and padding are IGNORE_INDEX)."""
        rows, labels = [], []
        for name, _, question in samples:
            # BPE is exact only if the whole text between two special tokens is tokenised at once.
            text = self.question_prefix + question.text + renderers.INSTRUCTIONS.get(name, "")
            prompt = self.prompt_head + self._tokenize(text) + self.prompt_tail
            answer = [*self._tokenize(question.answers[0]), self.eos_token_id]
            rows.append(prompt + answer)
            labels.append([IGNORE_INDEX] * len(prompt) + answer)
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad_token_id)
        target, mask = (
            torch.full((len(rows), width), IGNORE_INDEX),
            torch.zeros((len(rows), width), dtype=torch.long),
        )
        for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
            ids[i, : len(row)], target[i, : len(row)], mask[i, : len(row)] = (
                torch.tensor(row),
                torch.tensor(label),
                1,
            )
        pixels = torch.from_numpy(np.stack([np.asarray(image) for _, image, _ in samples]))
        inputs = {"input_ids": ids, "attention_mask": mask}
        return inputs | self.input_builder.build_inputs(pixels.permute(0, 3, 1, 2), ids), target


def compute_answer_logits(model: Any, batch: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [n, vocabulary] for the n answer tokens of a batch, the token ids [n] and their rows in the batch [n]."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(**batch).last_hidden_state
        is_answer = labels[:, 1:] != IGNORE_INDEX
        logits = model.lm_head(hidden[:, :-1][is_answer]).float()
    return logits, labels[:, 1:][is_answer], is_answer.nonzero()[:, 0]


def compute_loss(model: Any, batch: dict[str, Tensor], labels: Tensor, length_power: float) -> Tensor:
    """Mean cross-entropy, weighted such that an answer of n tokens has the weight n ** `length_power`."""
    logits, target, rows = compute_answer_logits(model, batch, labels)
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    weight = torch.bincount(rows, minlength=len(labels)).clamp(min=1).float().pow(length_power - 1)[rows]
    return (losses * weight).sum() / weight.sum()


@torch.no_grad()
def compute_exact_match(model: Any, batches: PretrainBatches, renderer_name: str, num_images: int) -> float:
    """Percentage of `num_images` validation images whose answer is exactly the greedy one (by teacher forcing)."""
    model.eval()
    num_correct = 0
    for start in range(0, num_images, 64):
        samples = []
        for i in range(start, min(start + 64, num_images)):
            rendered = renderers.render_image(renderer_name, "validation", i)
            samples.append((renderer_name, rendered.image, rendered.questions[i % len(rendered.questions)]))
        batch, labels = batches.collate_samples(samples)
        logits, target, rows = compute_answer_logits(model, batch, labels)
        is_wrong = torch.zeros(len(samples), dtype=torch.bool)
        is_wrong[rows[logits.argmax(-1) != target]] = True
        num_correct += int((~is_wrong).sum())
    model.train()
    return 100 * num_correct / num_images


class PretrainRun:
    """Model, optimizer and batches of one worker, and the folder from which the run is resumed."""

    def __init__(self, args: argparse.Namespace, rank: int) -> None:
        torch.manual_seed(args.seed)
        torch.set_num_threads(1)
        self.args, self.rank = args, rank
        tokenizer = fit_tokenizer() if args.fit_tokenizer else None
        self.model, self.processor = BUILDERS[args.family](tokenizer)
        self.model.set_attn_implementation("eager")  # faster than sdpa for sequences this short on a CPU
        self.model.train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05)
        self.batches = PretrainBatches(self.processor, args.seed, args.batch // args.workers, args.steps)
        self.folder = Path(args.run)
        self.step = self._load_state()

    def _load_state(self) -> int:
        marker = self.folder / "state.json"
        if not marker.exists():
            return 0
        state = json.loads(marker.read_text())
        self.model.load_state_dict(load_file(self.folder / state["weights"]))
        moments = load_file(self.folder / state["moments"])
        for i, p in enumerate(self.parameters):
            if f"{i}.exp_avg" not in moments:  # this parameter never gets a gradient
                continue
            self.optimizer.state[p] = {key: moments[f"{i}.{key}"] for key in ADAM_STATE_KEYS}
        return int(state["step"])

    def save_state(self) -> None:
        """Save weights and moments under new names, then replace the marker; a kill in between loses nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        names = {"weights": f"weights-{self.step}.safetensors", "moments": f"moments-{self.step}.safetensors"}
        save_file(self.model.state_dict(), self.folder / names["weights"])
        moments = {
            f"{i}.{key}": self.optimizer.state[p][key]
            for i, p in enumerate(self.parameters)
            if p in self.optimizer.state
            for key in ADAM_STATE_KEYS
        }
        save_file(moments, self.folder / names["moments"])
        temporary = self.folder / "state.json.new"
        temporary.write_text(json.dumps({"step": self.step, **names}))
        temporary.replace(self.folder / "state.json")
        for file in self.folder.glob("*.safetensors"):
            if file.name not in names.values():
                file.unlink()

    def compute_learning_rate(self) -> float:
        """Learning rate of the next step: in each cycle a linear warm-up over 5 % of its steps, then a cosine to 0."""
        ends = [
            *(round(end_fraction * self.args.steps) for end_fraction, _ in LEARNING_RATE_CYCLES),
            self.args.steps + self.args.more,
        ]
        cycle = next(i for i, end in enumerate(ends) if self.step < end)
        start = ends[cycle - 1] if cycle else 0
        progress = (self.step - start) / (ends[cycle] - start)
        peak = [*LEARNING_RATE_CYCLES, LEARNING_RATE_CYCLES[-1]][cycle][1] * self.args.lr
        if progress < WARMUP_RATIO:
            return float(peak * (progress / WARMUP_RATIO + 1e-3))
        return float(peak * 0.5 * (1 + np.cos(np.pi * (progress - WARMUP_RATIO) / (1 - WARMUP_RATIO))))

    def train_step(self) -> float:
        """One optimizer step on the whole batch; returns this worker's loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.compute_learning_rate()
        loss = compute_loss(
            self.model,
            *self.batches.make_training_batch(self.step, self.rank),
            self.batches.get_phase(self.step).length_power,
        )
        loss.backward()
        if self.args.workers > 1:
            # Some parameters do not affect the loss (the tower's last norm), so they have no gradient on any worker.
            grads = [p.grad for p in self.parameters if p.grad is not None]
            flat = torch.cat([g.flatten() for g in grads])
            dist.all_reduce(flat)
            flat /= self.args.workers
            for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def score_renderers(self, num_images: int) -> dict[str, float]:
        """Exact match (%) on every benchmark, caption and (untrained) skill; the workers share the renderers."""
        worker_scores = {
            name: round(compute_exact_match(self.model, self.batches, name, num_images), 1)
            for i, name in enumerate(renderers.RENDERERS)
            if i % self.args.workers == self.rank
        }
        parts: list[Any] = [worker_scores]
        if self.args.workers > 1:
            parts = [None] * self.args.workers
            dist.all_gather_object(parts, worker_scores)
        return {name: score for part in parts for name, score in part.items()}

    def export_checkpoint(self, scores: dict[str, float]) -> None:
        """Write the model as an ordinary checkpoint folder, with the arguments and scores of the run in made.json."""
        out = Path(self.args.out)
        self.model.save_pretrained(out)
        self.processor.save_pretrained(out)
        metadata = {k: v for k, v in vars(self.args).items() if k not in ("out", "run")}
        metadata |= {"step": self.step, "renderer_version": renderers.RENDERER_VERSION, "exact_answers": scores}
        (out / "made.json").write_text(json.dumps(metadata, indent=1, sort_keys=True) + "\n")


def run_worker(rank: int, args: argparse.Namespace) -> None:
    """Train, score and save in one worker process (`rank` of `args.workers`)."""
    if args.workers > 1:
        die_with_parent(os.getppid())  # a killed parent must not leave workers behind
        store = f"file://{Path(args.run).absolute()}/rendezvous-{os.getppid()}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=args.workers)
    run = PretrainRun(args, rank)
    start_time, first_step = time.monotonic(), run.step
    last_step = args.steps + args.more
    if rank == 0:
        total = sum(p.numel() for p in run.parameters)
        print(f"{args.family}: {total / 1e6:.2f} M parameters, step {run.step} of {last_step}", flush=True)
    while run.step < last_step:
        loss = run.train_step()
        if rank == 0 and run.step % 50 == 0:
            rate = (time.monotonic() - start_time) / (run.step - first_step)
            print(f"step {run.step} loss {loss:.3f} {rate:.2f} s/step", flush=True)
        if run.step % args.save_every == 0 or run.step == last_step:
            scores = run.score_renderers(256 if run.step == last_step else 96)
            if rank == 0:
                held_out_scores = [scores[n] for n in renderers.BENCHMARKS]
                print(
                    f"step {run.step} held-out mean {sum(held_out_scores) / len(held_out_scores):.1f} {scores}",
                    flush=True,
                )
                run.save_state()
                run.export_checkpoint(scores)
    if args.workers > 1:
        dist.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the workers."""
    parser = argparse.ArgumentParser(prog="python -m lmm_forget.tiny.pretrain", description=__doc__)
    parser.add_argument("--family", choices=sorted(BUILDERS), default="onevision", help="which tiny LMM")
    parser.add_argument("--steps", type=int, default=3600, help="optimizer steps of the whole run")
    parser.add_argument(
        "--more",
        type=int,
        default=None,
        help="further steps with one more cycle (default: the family's)",
    )
    parser.add_argument("--batch", type=int, default=64, help="samples per step over all workers")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and images")
    parser.add_argument("--fit-tokenizer", action="store_true", help="fit a new tokenizer instead of the package's")
    parser.add_argument("--workers", type=int, default=2, help="single-threaded processes")
    parser.add_argument("--save-every", type=int, default=300, help="steps between saves and scores")
    parser.add_argument(
        "--run", default=None, help="folder of the state to resume from (default multirun/tiny_<family>)"
    )
    parser.add_argument("--out", default=None, help="checkpoint folder (default: the package's own)")
    args = parser.parse_args(argv)
    args.more = EXTRA_STEPS.get(args.family, 0) if args.more is None else args.more
    args.run = args.run or f"multirun/tiny_{args.family}"
    args.out = args.out or str(WEIGHTS / f"tiny_{args.family}")
    Path(args.run).mkdir(parents=True, exist_ok=True)
    if args.workers > 1:
        torch.multiprocessing.start_processes(run_worker, (args,), nprocs=args.workers, start_method="spawn")
    else:
        run_worker(0, args)


if __name__ == "__main__":
    main()
