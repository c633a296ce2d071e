"""Samples that turned wrong or right, as the page's browser shows them: question, reference, answers, picture."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.report.answers import read_answers
from lmm_forget.report.load import Sweep
from lmm_forget.report.pictures import Picture, choose, read_pictures
from lmm_forget.report.rows import held_out_tasks
from lmm_forget.report.settings import Setting

JOBS = 12
"""Jobs whose answers a page carries: the first of each setting, then the next of each."""
PICTURE_BYTES = 4_000_000
"""Of all pictures on a page, before they are written as text (a third more)."""
TEXT = 400
"""Characters of a question or an answer that a page shows."""
SAMPLES = 600
_COLUMNS = ("sample_id", "question", "references", "text", "value")


@dataclass
class Browser:
    """What the browser shows; `data` goes onto the page as JSON, `notes` tell what it does not show."""

    data: dict[str, Any] = field(
        default_factory=lambda: {"jobs": [], "tasks": [], "samples": [], "pictures": []}
    )
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.data["samples"])


def browser(sweep: Sweep, settings: Sequence[Setting]) -> Browser:
    """Samples of every task that changed in one of the shown jobs, with what each of these jobs answered.

    `data` holds `jobs` [{name, stages, counts}] (`counts[stage - 1][task] = [worse, better]` of all its questions),
    `tasks` [{name, held_out}], `pictures` (data URLs) and `samples` [{task, id, question, references, picture, images,
    base: [text, score], runs: {job: [[text, score], …]}}].
    """
    found = Browser()
    names = _shown(settings)
    total = sum(len(setting.rows) for setting in settings)
    if len(names) < total:
        found.notes.append(
            f"Of {total} jobs, {len(names)} are shown here, the first of each setting before others."
        )
    samples: dict[tuple[str, str], dict[str, Any]] = {}
    chosen: dict[tuple[str, str], None] = {}
    pictures: dict[tuple[str, str], Picture] = {}
    runs: dict[str, dict[tuple[str, str], list[list[Any]]]] = {}
    for job in names:
        try:
            runs[job] = _one(sweep, job, found, samples, chosen)
        except DataError as error:
            found.notes.append(f"{job}: no answers to show ({error}).")
            continue
        for key, picture in read_pictures(sweep.folders[job]).items():
            pictures.setdefault(key, picture)
    left = PICTURE_BYTES
    kept = _balanced(list(chosen))
    if len(kept) < len(chosen):
        found.notes.append(f"{len(kept)} of {len(chosen)} chosen samples are shown.")
    for key in kept:
        entry = samples[key]
        image = pictures.get(key)
        if image is not None and len(image.webp) <= left:
            left -= len(image.webp)
            entry |= {"picture": len(found.data["pictures"]), "images": image.images}
            code = base64.b64encode(image.webp).decode("ascii")
            size = [image.width, image.height]
            found.data["pictures"].append(["data:image/webp;base64," + code, *size])
        # the answer at the base is the first of any job's; all start from the same model or say otherwise
        entry["runs"] = {str(names.index(job)): each[key] for job, each in runs.items() if key in each}
        found.data["samples"].append(entry)
    shown = {entry["task"] for entry in found.data["samples"]}
    held = {task for job in names for task in held_out_tasks(sweep.results[job])}
    found.data["tasks"] = [
        {"name": task, "held_out": task in held}
        for task in dict.fromkeys(task for job in names for task in sweep.results[job]["base"]["scores"])
        if task in shown
    ]
    if found and not found.data["pictures"]:
        found.notes.append("These jobs left no pictures of their samples.")
    return found


def _shown(settings: Sequence[Setting]) -> list[str]:
    """Jobs whose answers are shown: the first of every setting, then the second of every …"""
    longest = max((len(setting.rows) for setting in settings), default=0)
    turns = [
        setting.rows[turn].job for turn in range(longest) for setting in settings if turn < len(setting.rows)
    ]
    kept = set(turns[:JOBS])
    return [row.job for setting in settings for row in setting.rows if row.job in kept]


def _one(
    sweep: Sweep,
    job: str,
    found: Browser,
    samples: dict[tuple[str, str], dict[str, Any]],
    chosen: dict[tuple[str, str], None],
) -> dict[tuple[str, str], list[list[Any]]]:
    """One job's answers by (task, sample id), the base first; its chosen samples are added to `chosen`."""
    results = sweep.results[job]
    answers = read_answers(sweep.folders[job], columns=_COLUMNS)
    stages = len(results["stages"])
    run: dict[tuple[str, str], list[list[Any]]] = {}
    counts: list[dict[str, list[int]]] = [{} for _ in range(stages)]
    for task in results["base"]["scores"]:
        tables = [answers.get((stage, task)) for stage in range(stages + 1)]
        if any(table is None for table in tables):
            continue
        courses: dict[str, list[list[Any]]] = {}
        for table in tables:
            for sample, text, value in zip(table["sample_id"], table["text"], table["value"], strict=True):  # type: ignore[index]
                courses.setdefault(sample, []).append([_cut(text), round(value, 3)])
        for stage in range(stages):
            moved = [each[stage + 1][1] - each[0][1] for each in courses.values()]
            counts[stage][task] = [sum(m < 0 for m in moved), sum(m > 0 for m in moved)]
        asked = tables[0] or {}
        about = {
            sample: (question, references)
            for sample, question, references in zip(
                asked["sample_id"], asked["question"], asked["references"], strict=True
            )
        }
        for sample in choose({sample: [value for _, value in each] for sample, each in courses.items()}):
            chosen.setdefault((task, sample))
            question, references = about[sample]
            samples.setdefault(
                (task, sample),
                {
                    "task": task,
                    "id": sample,
                    "question": _cut(question),
                    "references": [_cut(reference) for reference in references[:5]],
                },
            )
        run |= {(task, sample): each for sample, each in courses.items()}
    found.data["jobs"].append(
        {"name": job, "stages": [stage["task"] for stage in results["stages"]], "counts": counts}
    )
    return run


def _balanced(keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """At most `SAMPLES` of the keys, tasks taking turns: whoever looks at all of them sees every task soon."""
    by_task: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        by_task.setdefault(key[0], []).append(key)
    longest = max(map(len, by_task.values()), default=0)
    turns = [group[turn] for turn in range(longest) for group in by_task.values() if turn < len(group)]
    return turns[:SAMPLES]


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[: TEXT - 1]}…"
