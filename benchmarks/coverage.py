"""How often the 95 % interval of a comparison holds the truth where questions share images.

    python benchmarks/coverage.py [--draws 2000]

Two models answer 8 questions about each of 120 images. The second forgets 15 % of what the first can do, an image
mostly as a whole or not at all. Every draw makes new images; the interval of `metrics.compare_pair` is taken once with
the image as its unit and once as if every question stood alone, and compared with the change that the simulation has.
Prints the coverage of both, and how often each calls a change of zero significant.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from lmm_forget.metrics import TaskScores, compare_pair

IMAGES, QUESTIONS, FORGOTTEN = 120, 8, 0.15
RIGHT = 4 / 6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=1000)
    given = parser.parse_args()
    started = time.monotonic()
    rng = np.random.default_rng(2024)
    truth = -100 * RIGHT * FORGOTTEN
    held = dict.fromkeys(("image", "question"), 0)
    false_alarms = dict.fromkeys(("image", "question"), 0)
    for _ in range(given.draws):
        before, after, one, two, images = draw(rng)
        for unit, labels in (("image", images), ("question", np.arange(len(images)))):
            found = compare_pair(
                TaskScores("task", np.stack([before, after]), labels), resamples=given.resamples
            )
            held[unit] += bool(found["low"] <= truth <= found["high"])
            null = compare_pair(TaskScores("task", np.stack([one, two]), labels), resamples=1)
            false_alarms[unit] += bool(null["p_value"] < 0.05)
    for unit in held:
        error = 100 * (held[unit] / given.draws * (1 - held[unit] / given.draws) / given.draws) ** 0.5
        print(
            f"unit {unit:<9} interval holds the truth in {100 * held[unit] / given.draws:.1f} % of {given.draws} draws "
            f"(± {1.96 * error:.1f}); p < 0.05 without a difference in {100 * false_alarms[unit] / given.draws:.1f} %"
        )
    print(f"{time.monotonic() - started:.0f} s")


def draw(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Scores of a model and of the one that forgot; of the same two with their names drawn anew for every image, which
    leaves no difference and questions as dependent as before; and the image ids."""
    easy = rng.beta(4, 2, size=IMAGES)[:, None]  # RIGHT on average
    forgotten = rng.beta(0.2, 0.2 * (1 - FORGOTTEN) / FORGOTTEN, size=IMAGES)[:, None]
    before = rng.random((IMAGES, QUESTIONS)) < easy
    after = before & (rng.random((IMAGES, QUESTIONS)) >= forgotten)
    swap = rng.random((IMAGES, 1)) < 0.5
    one, two = np.where(swap, after, before), np.where(swap, before, after)
    scores = [values.ravel().astype(float) for values in (before, after, one, two)]
    return (*scores, np.repeat(np.arange(IMAGES), QUESTIONS))


if __name__ == "__main__":
    main()
