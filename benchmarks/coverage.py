"""How often a 95 % interval holds the truth where questions share images.

    python benchmarks/coverage.py [--draws 2000] [--seeds 2024 0 1] [--images-only]

Two models answer several questions about each image. The second forgets 15 % of what the first can do, an image mostly
as a whole or not at all, which is as skewed as such data get. Every draw makes new images; the interval of
`metrics.compare_task_scores`, which is that of results.json, is taken with the image as its unit and as if every
question
stood alone, beside it the plain percentiles of the same resamples; each is compared with the change that the simulation
has. Printed are the coverage of all three and how often a change of zero is called significant, for a small and for a
usual number of images.

Then the figures of a run of three stages over four such benchmarks: the held-out mean at the end, and that of the worst
stage, which lies clearly apart from the others or ties with one.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from unittest import mock

import numpy as np

from lmm_forget.metrics import TaskScores, compare_task_scores, compute_figures_of_merit
from lmm_forget.metrics import intervals as made

SIZES = ((120, 8), (400, 4))  # images, questions about each
FORGOTTEN = 0.15
RIGHT = 4 / 6
RUNS = {"worst stage apart": (0.05, 0.3, 0.15), "two stages tie": (0.05, 0.2, 0.2)}
BENCHMARKS, IMAGES, QUESTIONS = 4, 60, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2024])
    parser.add_argument("--images-only", action="store_true", help="leave out the unclustered interval (slow)")
    given = parser.parse_args()
    units = ("image",) if given.images_only else ("image", "question")
    for seed in given.seeds:
        for images, questions in SIZES:
            started = time.monotonic()
            print(f"{images} images, {questions} questions about each, {given.draws} draws from seed {seed}:")
            measure(np.random.default_rng(seed), images, questions, given.draws, given.resamples, units)
            print(f"  {time.monotonic() - started:.0f} s", flush=True)
        for name, forgotten in RUNS.items():
            print(f"a run, {BENCHMARKS} benchmarks of {IMAGES} images, {name}, seed {seed}:")
            measure_run(np.random.default_rng(seed), forgotten, given.draws // 2, given.resamples)


def measure(
    rng: np.random.Generator, images: int, questions: int, draws: int, resamples: int, units: Sequence[str]
) -> None:
    truth = -100 * RIGHT * FORGOTTEN
    held: Counter[str] = Counter()
    false_alarms: Counter[str] = Counter()
    for _ in range(draws):
        before, after, one, two, labels = draw(rng, images, questions)
        for unit in units:
            clusters = labels if unit == "image" else np.arange(len(labels))
            scores = TaskScores("task", np.stack([before, after]), clusters)
            found = compare_task_scores(scores, num_resamples=resamples)
            held[unit] += bool(found["low"] <= truth <= found["high"])
            if unit == "image":
                with mock.patch.object(made, "compute_bca_interval", percentiles):
                    plain = compare_task_scores(scores, num_resamples=resamples)
                held["image, plain percentiles"] += bool(plain["low"] <= truth <= plain["high"])
            null = compare_task_scores(TaskScores("task", np.stack([one, two]), clusters), num_resamples=1)
            false_alarms[unit] += bool(null["p_value"] < 0.05)
    for unit, hits in held.items():
        told = (
            f"; p < 0.05 without a difference in {100 * false_alarms[unit] / draws:.1f} %"
            if unit in false_alarms
            else ""
        )
        print(f"  unit {unit:<24} {share(hits, draws)}{told}", flush=True)


def measure_run(rng: np.random.Generator, forgotten: tuple[float, ...], draws: int, resamples: int) -> None:
    truth = {"final": -100 * RIGHT * forgotten[-1], "worst": -100 * RIGHT * max(forgotten)}
    held: Counter[str] = Counter()
    target = TaskScores("a", np.zeros((len(forgotten) + 1, 2)), ["i", "j"])
    for _ in range(draws):
        scores = {f"b{number}": stages(rng, f"b{number}", forgotten) for number in range(BENCHMARKS)}
        heldout = compute_figures_of_merit(
            ["a"] * len(forgotten), list(scores), {"a": target, **scores}, num_resamples=resamples
        )["heldout_forgetting"]
        for name, entry in (("final", heldout), ("worst", heldout["worst"])):
            held[name] += bool(entry["low"] <= truth[name] <= entry["high"])
    for name in truth:
        print(f"  {name:<29} {share(held[name], draws)}", flush=True)


def stages(rng: np.random.Generator, name: str, forgotten: tuple[float, ...]) -> TaskScores:
    """One benchmark at the base and after each stage; an image is forgotten mostly as a whole, anew at each stage."""
    easy = rng.beta(4, 2, size=IMAGES)[:, None]
    before = rng.random((IMAGES, QUESTIONS)) < easy
    rows = [before]
    for part in forgotten:
        down = rng.beta(0.2, 0.2 * (1 - part) / part, size=IMAGES)[:, None]
        rows.append(before & (rng.random(before.shape) >= down))
    values = np.stack([row.ravel().astype(float) for row in rows])
    return TaskScores(name, values, np.repeat(np.arange(IMAGES), QUESTIONS))


def draw(rng: np.random.Generator, images: int, questions: int) -> tuple[np.ndarray, ...]:
    """Scores of a model and of the one that forgot; of the same two with their names drawn anew for every image, which
    leaves no difference and questions as dependent as before; and the image ids."""
    easy = rng.beta(4, 2, size=images)[:, None]  # RIGHT on average
    forgotten = rng.beta(0.2, 0.2 * (1 - FORGOTTEN) / FORGOTTEN, size=images)[:, None]
    before = rng.random((images, questions)) < easy
    after = before & (rng.random((images, questions)) >= forgotten)
    swap = rng.random((images, 1)) < 0.5
    one, two = np.where(swap, after, before), np.where(swap, before, after)
    scores = [values.ravel().astype(float) for values in (before, after, one, two)]
    return (*scores, np.repeat(np.arange(images), questions))


def percentiles(value: float, drawn: np.ndarray, *_: object, **__: object) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def share(hits: int, draws: int) -> str:
    error = 196 * (hits / draws * (1 - hits / draws) / draws) ** 0.5
    return f"the interval holds the truth in {100 * hits / draws:.1f} % (± {error:.1f})"


if __name__ == "__main__":
    main()
