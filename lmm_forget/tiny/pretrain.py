"""`python -m lmm_forget.tiny.pretrain`: teach a tiny LMM to see and to answer, from nothing, on a laptop.

Captions first, then the benchmarks' formats, never one of the five skills: they are what experiments teach.
Seeded and resumable; gradients are summed over `--workers` single-threaded processes, which on two cores is
faster than one process with two threads. Every picture is drawn anew, none is seen twice.
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

# A spinning barrier can slow a step twenty times when another process wants the core; set before torch starts.
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
    """A part of the run, up to the share `until` of its steps.

    `mixture` gives relative frequencies of renderers; an answer of n tokens weighs n ** `length_power` in the loss
    (1: every token counts the same).
    """

    end_fraction: float
    mixture: Mapping[str, float]
    length_power: float = 1.0


# Pictures become words under few kinds of long, certain captions; under many kinds or short answers the loss stays at
# the answers' prior for a thousand steps. Once the tower sees, short answers must not be drowned by long ones.
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
# Two cycles of the learning rate, (share of the steps, peak as a share of --lr): the second, short and low, opens the
# output head for words that no picture calls for.
LEARNING_RATE_CYCLES = ((5 / 6, 1.0), (1.0, 0.4))
# A family whose tower sees less well at the end of these gets more steps behind them, as one more cycle.
EXTRA_STEPS = {"next": 600}
LAST_PHASE = PretrainPhase(2.0, {**PHASES[-1].mixture, "ai2d": 3.0, "salad": 3.0}, 0.5)
WARMUP_RATIO = 0.05
IGNORE_INDEX = -100
ADAM_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")


class PretrainBatches:
    """Draws, tokenises and pads training batches; the same (step, worker) always gives the same batch."""

    def __init__(self, processor: Any, seed: int, batch_size: int, total_steps: int) -> None:
        self.processor, self.seed, self.size, self.steps = processor, seed, batch_size, total_steps
        self.token_cache: dict[str, list[int]] = {}
        self.input_builder = make_input_builder(processor)
        head, self.question_prefix, self.prompt_tail = self._split_chat_template()
        at = head.index(self.input_builder.image_token_id)
        self.prompt_head = (
            head[:at] + [self.input_builder.image_token_id] * self.input_builder.tokens_per_image + head[at + 1 :]
        )
        self.eos_token_id = processor.tokenizer.eos_token_id
        self.pad_token_id = processor.tokenizer.pad_token_id

    def _split_chat_template(self) -> tuple[list[int], str, list[int]]:
        """Ids up to the last special token before the question, the text from there to the question, ids behind it."""
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
        """The phase that a step belongs to."""
        return next((phase for phase in PHASES if step < phase.end_fraction * self.steps), LAST_PHASE)

    def sample_renderer_names(self, rng: random.Random, step: int) -> list[str]:
        """Which renderers the batch of a step draws from."""
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
        """Right-padded inputs with the answers' labels, as the real processor would make them."""
        rows, labels = [], []
        for name, _, question in samples:
            # Tokenising all that stands between two special tokens at once keeps BPE exact.
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
    """Logits [n, vocabulary] that predict the n answer tokens, their ids [n] and their rows [n]."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(**batch).last_hidden_state
        is_answer = labels[:, 1:] != IGNORE_INDEX
        logits = model.lm_head(hidden[:, :-1][is_answer]).float()
    return logits, labels[:, 1:][is_answer], is_answer.nonzero()[:, 0]


def compute_loss(model: Any, batch: dict[str, Tensor], labels: Tensor, length_power: float) -> Tensor:
    """Cross-entropy in which a sample of n answer tokens weighs n ** `length_power`."""
    logits, target, rows = compute_answer_logits(model, batch, labels)
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    weight = torch.bincount(rows, minlength=len(labels)).clamp(min=1).float().pow(length_power - 1)[rows]
    return (losses * weight).sum() / weight.sum()


@torch.no_grad()
def compute_exact_match(model: Any, batches: PretrainBatches, renderer_name: str, num_images: int) -> float:
    """Per cent of `n` test pictures whose whole answer is the greedy one (teacher forcing gives the same)."""
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
    """The run's state in one worker: model, optimizer, and the folder it is saved to and resumed from."""

    def __init__(self, args: argparse.Namespace, rank: int) -> None:
        torch.manual_seed(args.seed)
        torch.set_num_threads(1)
        self.args, self.rank = args, rank
        core = fit_tokenizer() if args.fit_tokenizer else None
        self.model, self.processor = BUILDERS[args.family](core)
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
            if f"{i}.exp_avg" not in moments:  # no gradient ever reaches it
                continue
            self.optimizer.state[p] = {key: moments[f"{i}.{key}"] for key in ADAM_STATE_KEYS}
        return int(state["step"])

    def save_state(self) -> None:
        """Weights and moments under new names, then the marker: a kill in between leaves the last state valid."""
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
        for old in self.folder.glob("*.safetensors"):
            if old.name not in names.values():
                old.unlink()

    def compute_learning_rate(self) -> float:
        """Learning rate of the next step: per cycle, a linear warm-up over 5 % of its steps, then a cosine to zero."""
        ends = [
            *(round(until * self.args.steps) for until, _ in LEARNING_RATE_CYCLES),
            self.args.steps + self.args.more,
        ]
        cycle = next(i for i, end in enumerate(ends) if self.step < end)
        start = ends[cycle - 1] if cycle else 0
        done, top = (
            (self.step - start) / (ends[cycle] - start),
            [*LEARNING_RATE_CYCLES, LEARNING_RATE_CYCLES[-1]][cycle][1] * self.args.lr,
        )
        if done < WARMUP_RATIO:
            return float(top * (done / WARMUP_RATIO + 1e-3))
        return float(top * 0.5 * (1 + np.cos(np.pi * (done - WARMUP_RATIO) / (1 - WARMUP_RATIO))))

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
            # The tower's last norm is behind no loss, so some gradients do not exist on any worker.
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
        """Exact answers on every benchmark, caption and (never trained) skill, shared out over the workers."""
        own_scores = {
            name: round(compute_exact_match(self.model, self.batches, name, num_images), 1)
            for i, name in enumerate(renderers.RENDERERS)
            if i % self.args.workers == self.rank
        }
        parts: list[Any] = [own_scores]
        if self.args.workers > 1:
            parts = [None] * self.args.workers
            dist.all_gather_object(parts, own_scores)
        return {name: score for part in parts for name, score in part.items()}

    def export_checkpoint(self, scores: dict[str, float]) -> None:
        """Write the finished model as an ordinary checkpoint folder, with how it was made beside it."""
        out = Path(self.args.out)
        self.model.save_pretrained(out)
        self.processor.save_pretrained(out)
        metadata = {k: v for k, v in vars(self.args).items() if k not in ("out", "run")}
        metadata |= {"step": self.step, "world_version": renderers.RENDERER_VERSION, "exact_answers": scores}
        (out / "made.json").write_text(json.dumps(metadata, indent=1, sort_keys=True) + "\n")


def run_worker(rank: int, args: argparse.Namespace) -> None:
    """One worker's whole run."""
    if args.workers > 1:
        die_with_parent(os.getppid())  # a killed parent must not leave workers behind
        store = f"file://{Path(args.run).absolute()}/rendezvous-{os.getppid()}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=args.workers)
    run = PretrainRun(args, rank)
    started, first = time.monotonic(), run.step
    last = args.steps + args.more
    if rank == 0:
        total = sum(p.numel() for p in run.parameters)
        print(f"{args.family}: {total / 1e6:.2f} M parameters, step {run.step} of {last}", flush=True)
    while run.step < last:
        loss = run.train_step()
        if rank == 0 and run.step % 50 == 0:
            rate = (time.monotonic() - started) / (run.step - first)
            print(f"step {run.step} loss {loss:.3f} {rate:.2f} s/step", flush=True)
        if run.step % args.save_every == 0 or run.step == last:
            scores = run.score_renderers(256 if run.step == last else 96)
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
        help="steps behind these, with one more cycle (default: the family's)",
    )
    parser.add_argument("--batch", type=int, default=64, help="samples per step over all workers")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of weights and pictures")
    parser.add_argument(
        "--fit-tokenizer", action="store_true", help="fit it to the world's words anew, not the shipped one"
    )
    parser.add_argument("--workers", type=int, default=2, help="single-threaded processes")
    parser.add_argument("--save-every", type=int, default=300, help="steps between saves and scores")
    parser.add_argument("--run", default=None, help="folder of the resumable state (default multirun/tiny_<family>)")
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
