"""The long versions of tests/test_survival.py: many kills, a whole grid of orders, pairs of sweeps on one store.

    python benchmarks/survival.py kills 60        # SIGKILLs at random moments, two recipes, with dropout
    python benchmarks/survival.py orders          # 2 recipes x 24 orders of four skills, with and without sharing
    python benchmarks/survival.py sweeps 20       # two sweeps started together, again and again

Every line is printed as soon as it is known; the last one begins with PASSED or FAILED.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import harness

SMOKE = ["experiment=smoke", "training.attention_dropout=0.2", "training.max_steps=4", "checkpoint_every=1"]
ORDERS = [
    "-m",
    "experiment=smoke",
    "recipe=sa_proj,llm",
    "sequence=order",
    "sequence.tasks=[cub200,pixmocount,pathvqa,timeclock]",
    "hardware.max_parallel_jobs=2",
]


def say(line: str) -> None:
    """Print a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def kills(folder: Path, wanted: int) -> bool:
    """Kill the smoke sequence at random moments until `wanted` kills happened; every end must equal the calm one."""
    rng = random.Random(0)
    recipes = ("sa_proj", "llm")
    calm, seconds = {}, 0.0
    for recipe in recipes:
        home = folder / f"calm_{recipe}"
        home.mkdir()
        started = time.monotonic()
        harness.run(home, *SMOKE, f"recipe={recipe}")
        (path,) = (home / "multirun" / "smoke").glob("*/results.json")
        calm[recipe] = path.parent
        seconds = time.monotonic() - started
        say(f"{recipe} uninterrupted: {seconds:.0f} s")
    done, rounds = 0, 0
    while done < wanted:
        recipe = recipes[rounds % 2]
        home = folder / f"stormy_{rounds}"
        home.mkdir()
        moments = harness.kill_and_repeat(
            home, [*SMOKE, f"recipe={recipe}"], rng, kills=min(wanted - done, 5), longest=seconds
        )
        done, rounds = done + len(moments), rounds + 1
        (path,) = (home / "multirun" / "smoke").glob("*/results.json")
        found = harness.difference(calm[recipe], path.parent)
        resumed = [s.get("resumed_at") for each in harness.jobs(home).values() for s in each["timings"]["stages"]]
        say(
            f"round {rounds}, {recipe}: {len(moments)} kills after {', '.join(f'{m:.1f}' for m in moments)} s, "
            f"stages taken up at {resumed}: {found or 'equal to the byte'}; {done} of {wanted} kills"
        )
        if found:
            return False
        shutil.rmtree(home)
    return True


def orders(folder: Path) -> bool:
    """All 24 orders of four skills for two recipes: 64 stages per recipe, equal to jobs alone; against no sharing."""
    grid = [*ORDERS, "sequence.order=range(0,24)"]
    home = folder / "grid"
    home.mkdir()
    started = time.monotonic()
    harness.run(home, *grid, timeout=7200)
    wall = time.monotonic() - started
    found = harness.jobs(home)
    count, questions = harness.trained(found.values()), harness.asked(found.values())
    each = sum(s["n"] for s in next(iter(found.values()))["base"]["scores"].values())
    say(f"{len(found)} jobs in {wall:.0f} s: {count} stages trained (2 x 64 in the trie), {questions} questions asked")
    good = len(found) == 48 and count == 128 and questions == (1 + 128) * each
    say(f"every question once per model: {questions} of {(1 + 128) * each}")
    for recipe, order in (("sa_proj", 0), ("llm", 9), ("sa_proj", 23)):
        alone = folder / f"alone_{recipe}_{order}"
        alone.mkdir()
        begun = time.monotonic()
        plain = [w for w in ORDERS if w != "-m" and not w.startswith("recipe=")]
        harness.run(alone, *plain, f"recipe={recipe}", f"sequence.order={order}")
        (path,) = (alone / "multirun" / "smoke").glob("*/results.json")
        (twin,) = (home / "multirun" / "smoke").glob(f"{recipe}-order={order}/results.json")
        odd = harness.difference(path.parent, twin.parent)
        say(f"{recipe} order {order} alone in a fresh store, {time.monotonic() - begun:.0f} s: {odd or 'equal'}")
        good = good and odd is None
    apart = folder / "apart"
    apart.mkdir()
    started = time.monotonic()
    harness.run(apart, *grid, "store=stores/${recipe.name}_${sequence.order}", timeout=7200)
    alone = time.monotonic() - started
    count = harness.trained(harness.jobs(apart).values())
    say(
        f"the same grid with a store for every job: {alone:.0f} s, {count} stages; "
        f"sharing takes {wall / alone:.2f} of that"
    )
    return good


def sweeps(folder: Path, times: int) -> bool:
    """Two sweeps at once on one store, `times` times: every stage trained once, nothing damaged."""
    grid = [
        *(word for word in ORDERS if not word.startswith("sequence.tasks")),
        "sequence.tasks=[cub200,timeclock]",
        "sequence.order=range(0,2)",
        "suite.tasks=[ai2d]",
        "training.max_steps=1",
    ]
    for number in range(times):
        home = folder / f"pair_{number}"
        home.mkdir()
        pair = [harness.start(home, *grid, f"name={name}") for name in ("one", "other")]
        codes = [process.wait(900) for process in pair]
        found = harness.jobs(home)
        count = harness.trained(found.values())
        damaged = list((home / "multirun" / ".store" / "damaged").glob("*"))
        say(
            f"pair {number + 1}: exit codes {codes}, {len(found)} jobs, {count} stages trained (of 8), "
            f"{len(damaged)} damaged"
        )
        if codes != [0, 0] or len(found) != 8 or count != 8 or damaged:
            return False
        shutil.rmtree(home)
    return True


def main() -> int:
    """Run the named check; returns the exit code."""
    what, *rest = sys.argv[1:] or [""]
    with tempfile.TemporaryDirectory(prefix="survival-") as place:
        folder = Path(place)
        if what == "kills":
            good = kills(folder, int(rest[0]) if rest else 60)
        elif what == "orders":
            good = orders(folder)
        elif what == "sweeps":
            good = sweeps(folder, int(rest[0]) if rest else 20)
        else:
            sys.exit(__doc__)
    say(f"{'PASSED' if good else 'FAILED'}: {' '.join(sys.argv[1:])}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
