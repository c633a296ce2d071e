"""How often the 95 % interval of a comparison holds the truth where questions share images.

    python benchmarks/coverage.py [--draws 2000]

Two models answer several questions about each image. The second forgets 15 % of what the first can do, an image mostly
as a whole or not at all, which is as skewed as such data get. Every draw makes new images; the interval of
`metrics.compare_pair` is taken once with the image as its unit and once as if every question stood alone, and compared
with the change that the simulation has. Prints the coverage of both, and how often each calls a change of zero
significant, for a small and for a usual number of images.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from lmm_forget.metrics import TaskScores, compare_pair

SIZES = ((120, 8), (400, 4))  # images, questions about each
FORGOTTEN = 0.15
RIGHT = 4 / 6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=1000)
    given = parser.parse_args()
    for images, questions in SIZES:
        started = time.monotonic()
        measure(images, questions, given.draws, given.resamples)
        print(f"  {time.monotonic() - started:.0f} s")


def measure(images: int, questions: int, draws: int, resamples: int) -> None:
    rng = np.random.default_rng([2024, images])
    truth = -100 * RIGHT * FORGOTTEN
    held = dict.fromkeys(("image", "question"), 0)
    false_alarms = dict.fromkeys(("image", "question"), 0)
    for _ in range(draws):
        before, after, one, two, labels = draw(rng, images, questions)
        for unit, clusters in (("image", labels), ("question", np.arange(len(labels)))):
            scores = TaskScores("task", np.stack([before, after]), clusters)
            found = compare_pair(scores, resamples=resamples)
            held[unit] += bool(found["low"] <= truth <= found["high"])
            null = compare_pair(TaskScores("task", np.stack([one, two]), clusters), resamples=1)
            false_alarms[unit] += bool(null["p_value"] < 0.05)
    print(f"{images} images, {questions} questions about each, {draws} draws:")
    for unit, hits in held.items():
        error = 196 * (hits / draws * (1 - hits / draws) / draws) ** 0.5
        print(
            f"  unit {unit:<9} the interval holds the truth in {100 * hits / draws:.1f} % (± {error:.1f}); "
            f"p < 0.05 without a difference in {100 * false_alarms[unit] / draws:.1f} %",
            flush=True,
        )


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


if __name__ == "__main__":
    main()
