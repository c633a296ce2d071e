"""Samples that turned wrong or right, for the sample browser of the page: question, reference, answers, picture."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmm_forget.errors import DataError
from lmm_forget.report.experiment_settings import ExperimentSetting
from lmm_forget.report.job_results import Sweep
from lmm_forget.report.job_rows import list_heldout_tasks
from lmm_forget.report.sample_pictures import SamplePicture, choose_changed_samples, read_sample_pictures
from lmm_forget.report.stage_answers import read_answer_columns

MAX_JOBS = 12
"""Jobs whose answers the page holds at most: the first of each setting, then the second of each, …"""
MAX_PICTURE_BYTES = 4_000_000
"""Bytes of all pictures on a page, before base64, which adds a third."""
MAX_TEXT_LENGTH = 400
"""Characters of a question or an answer that the page shows at most."""
MAX_SAMPLES = 600
"""Samples that the page holds at most."""
_COLUMNS = ("sample_id", "question", "references", "text", "value")


@dataclass
class SampleBrowser:
    """The content of the sample browser: `data` becomes JSON on the page, `notes` say what is left out."""

    data: dict[str, Any] = field(default_factory=lambda: {"jobs": [], "tasks": [], "samples": [], "pictures": []})
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.data["samples"])


def build_sample_browser(sweep: Sweep, settings: Sequence[ExperimentSetting]) -> SampleBrowser:
    """Samples of every task that changed in one of the shown jobs, with what each of these jobs answered.

    `data` holds `jobs` [{name, stages, counts}] (`counts[stage - 1][task] = [worse, better]` of all its questions),
    `tasks` [{name, held_out}], `pictures` (data URLs) and `samples` [{task, id, question, references, picture, images,
    base: [text, score], runs: {job: [[text, score], …]}}].
    """
    sample_browser = SampleBrowser()
    job_names = _choose_shown_jobs(settings)
    num_jobs = sum(len(setting.rows) for setting in settings)
    if len(job_names) < num_jobs:
        sample_browser.notes.append(
            f"Of {num_jobs} jobs, {len(job_names)} are shown here, the first of each setting before others."
        )
    samples: dict[tuple[str, str], dict[str, Any]] = {}
    chosen: dict[tuple[str, str], None] = {}
    pictures: dict[tuple[str, str], SamplePicture] = {}
    answers_by_job: dict[str, dict[tuple[str, str], list[list[Any]]]] = {}
    for job in job_names:
        try:
            answers_by_job[job] = _collect_job_answers(sweep, job, sample_browser, samples, chosen)
        except DataError as error:
            sample_browser.notes.append(f"{job}: no answers to show ({error}).")
            continue
        for key, picture in read_sample_pictures(sweep.folders[job]).items():
            pictures.setdefault(key, picture)
    remaining_bytes = MAX_PICTURE_BYTES
    selected_keys = _balance_tasks(list(chosen))
    if len(selected_keys) < len(chosen):
        sample_browser.notes.append(f"{len(selected_keys)} of {len(chosen)} chosen samples are shown.")
    for key in selected_keys:
        entry = samples[key]
        image = pictures.get(key)
        if image is not None and len(image.webp) <= remaining_bytes:
            remaining_bytes -= len(image.webp)
            entry |= {"picture": len(sample_browser.data["pictures"]), "images": image.num_images}
            encoded_image = base64.b64encode(image.webp).decode("ascii")
            size = [image.width, image.height]
            sample_browser.data["pictures"].append(["data:image/webp;base64," + encoded_image, *size])
        # The first answer of every job is the base's; a note says so if the jobs have different bases.
        entry["runs"] = {str(job_names.index(job)): each[key] for job, each in answers_by_job.items() if key in each}
        sample_browser.data["samples"].append(entry)
    shown_tasks = {entry["task"] for entry in sample_browser.data["samples"]}
    heldout_tasks = {task for job in job_names for task in list_heldout_tasks(sweep.results[job])}
    sample_browser.data["tasks"] = [
        {"name": task, "held_out": task in heldout_tasks}
        for task in dict.fromkeys(task for job in job_names for task in sweep.results[job]["base"]["scores"])
        if task in shown_tasks
    ]
    if sample_browser and not sample_browser.data["pictures"]:
        sample_browser.notes.append("These jobs left no pictures of their samples.")
    return sample_browser


def _choose_shown_jobs(settings: Sequence[ExperimentSetting]) -> list[str]:
    """At most `MAX_JOBS` jobs: the first of every setting, then the second of every, …"""
    max_rows = max((len(setting.rows) for setting in settings), default=0)
    turns = [setting.rows[turn].job for turn in range(max_rows) for setting in settings if turn < len(setting.rows)]
    selected_jobs = set(turns[:MAX_JOBS])
    return [row.job for setting in settings for row in setting.rows if row.job in selected_jobs]


def _collect_job_answers(
    sweep: Sweep,
    job: str,
    sample_browser: SampleBrowser,
    samples: dict[tuple[str, str], dict[str, Any]],
    chosen: dict[tuple[str, str], None],
) -> dict[tuple[str, str], list[list[Any]]]:
    """One job's [text, score] answers by (task, sample id), the base's first; adds its changed samples to `chosen`."""
    results = sweep.results[job]
    answers = read_answer_columns(sweep.folders[job], columns=_COLUMNS)
    stages = len(results["stages"])
    answers_by_sample: dict[tuple[str, str], list[list[Any]]] = {}
    counts: list[dict[str, list[int]]] = [{} for _ in range(stages)]
    for task in results["base"]["scores"]:
        tables = [answers.get((stage, task)) for stage in range(stages + 1)]
        if any(table is None for table in tables):
            continue
        scores_by_sample: dict[str, list[list[Any]]] = {}
        for table in tables:
            for sample, text, value in zip(table["sample_id"], table["text"], table["value"], strict=True):  # type: ignore[index]
                scores_by_sample.setdefault(sample, []).append([_truncate_text(text), round(value, 3)])
        for stage in range(stages):
            score_changes = [each[stage + 1][1] - each[0][1] for each in scores_by_sample.values()]
            counts[stage][task] = [
                sum(change < 0 for change in score_changes),
                sum(change > 0 for change in score_changes),
            ]
        base_table = tables[0] or {}
        questions = {
            sample: (question, references)
            for sample, question, references in zip(
                base_table["sample_id"], base_table["question"], base_table["references"], strict=True
            )
        }
        for sample in choose_changed_samples(
            {sample: [value for _, value in each] for sample, each in scores_by_sample.items()}
        ):
            chosen.setdefault((task, sample))
            question, references = questions[sample]
            samples.setdefault(
                (task, sample),
                {
                    "task": task,
                    "id": sample,
                    "question": _truncate_text(question),
                    "references": [_truncate_text(reference) for reference in references[:5]],
                },
            )
        answers_by_sample |= {(task, sample): each for sample, each in scores_by_sample.items()}
    sample_browser.data["jobs"].append(
        {"name": job, "stages": [stage["task"] for stage in results["stages"]], "counts": counts}
    )
    return answers_by_sample


def _balance_tasks(keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """At most `MAX_SAMPLES` of the (task, sample id) keys; tasks take turns, so that every task appears early."""
    by_task: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        by_task.setdefault(key[0], []).append(key)
    longest = max(map(len, by_task.values()), default=0)
    interleaved = [group[turn] for turn in range(longest) for group in by_task.values() if turn < len(group)]
    return interleaved[:MAX_SAMPLES]


def _truncate_text(text: str) -> str:
    return text if len(text) <= MAX_TEXT_LENGTH else f"{text[: MAX_TEXT_LENGTH - 1]}…"
