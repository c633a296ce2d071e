"""`python -m lmm_forget.why FOLDER`: how output shift and forgetting go together, and which questions turned wrong."""

from __future__ import annotations

import html
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError, DataError, LmmForgetError

HELP = """usage: python -m lmm_forget.why FOLDER [format=table|json] [examples=12]

Reads multirun/<name> (or one job of it) whose jobs ran with a probe, e.g. probe=both, and writes there
  connection.json    correlations of the shift with held-out forgetting (intervals over jobs), and their points
  connection.svg     the scatter plot
  turned_wrong.html  held-out questions that turned wrong, with pictures and what is said instead; also as .md
and prints a short form (format=json: all of connection.json).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (2 for a mistake, told in one line on stderr)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    try:
        _why(words)
    except LmmForgetError as error:
        print(f"lmm-forget: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _why(words: Sequence[str]) -> None:
    folder, form, examples = _asked(words)
    from lmm_forget.metrics.connection import connection
    from lmm_forget.report.load import load_sweep

    sweep = load_sweep(folder)
    jobs = {name: result for name, result in sweep.results.items() if "probes" in result}
    if not jobs:
        raise DataError(
            f"{folder}: no finished job has probes; run them with probe=output_shift or probe=both"
        )
    found = connection(list(jobs.values()))
    (folder / "connection.json").write_text(
        json.dumps(found, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8"
    )
    draw(found, folder / "connection.svg")
    write_turned(folder, list(jobs), examples)
    if form == "json":
        print(json.dumps(found, indent=1, sort_keys=True))
    else:
        _show(found, turned_counts(folder, list(jobs)))


def _asked(words: Sequence[str]) -> tuple[Path, str, int]:
    options = dict(
        word.split("=", 1)
        for word in words
        if word.split("=", 1)[0] in ("format", "examples") and "=" in word
    )
    folders = [word for word in words if word.partition("=")[0] not in options]
    form, examples = options.get("format", "table"), options.get("examples", "12")
    if len(folders) != 1:
        raise ConfigError(
            f"found {len(folders)} folders, expected one: python -m lmm_forget.why multirun/<name>"
        )
    if form not in ("table", "json"):
        raise ConfigError(f"format={form} is not known; choose one of: table, json")
    if not examples.isdigit():
        raise ConfigError(f"examples={examples} cannot be used; it must be a whole number")
    return Path(folders[0]), form, int(examples)


def turned_counts(folder: Path, jobs: Sequence[str]) -> list[dict[str, Any]]:
    """Per job and stage: how many suite questions turned wrong, and in which formats they are answered now."""
    rows = []
    for job in jobs:
        path = _job_folder(folder, job)
        results = json.loads((path / "results.json").read_text(encoding="utf-8"))
        suite = results["config"]["suite"]["tasks"]
        for stage in results["stages"]:
            entries = [stage["probes"]["turned_wrong"][task] for task in suite]
            said: Counter[str] = Counter()
            for entry in entries:
                said.update(entry["said_instead"])
            rows.append(
                {
                    "job": job,
                    "stage": stage["index"],
                    "task": stage["task"],
                    "turned_wrong": sum(entry["turned_wrong"] for entry in entries),
                    "said_instead": dict(said),
                }
            )
    return rows


def write_turned(folder: Path, jobs: Sequence[str], examples: int) -> None:
    """turned_wrong.md and turned_wrong.html: at most `examples` held-out questions per job, spread over its stages."""
    parts, lines = [], ["# Held-out questions that turned wrong", ""]
    for job in jobs:
        chosen = _examples(_job_folder(folder, job), examples)
        lines += [
            f"## {job}",
            "",
            "| after | benchmark | question | right answer | before | now | format |",
            "|---|---|---|---|---|---|---|",
        ]
        body = []
        for row, picture in chosen:
            cells = [
                row["taught"],
                row["task"],
                row["question"],
                row["reference"],
                row["before"],
                row["after"],
                row["said"],
            ]
            lines.append(
                "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in cells) + " |"
            )
            image = f'<img src="data:image/png;base64,{picture}" alt="" width="96">' if picture else ""
            body.append(
                "<tr><td>"
                + image
                + "</td>"
                + "".join(f"<td>{html.escape(str(c))}</td>" for c in cells)
                + "</tr>"
            )
        lines.append("")
        head = "".join(
            f"<th>{h}</th>"
            for h in ("", "after", "benchmark", "question", "right answer", "before", "now", "format")
        )
        parts.append(f"<h2>{html.escape(job)}</h2><table><tr>{head}</tr>{''.join(body)}</table>")
    page = (
        "<!doctype html><meta charset='utf-8'><title>turned wrong</title><style>body{font-family:sans-serif;"
        "margin:2em}td,th{padding:.3em .6em;text-align:left;border-bottom:1px solid #ccc;white-space:pre-line}</style>"
        f"<h1>Held-out questions that turned wrong</h1>{''.join(parts)}"
    )
    (folder / "turned_wrong.md").write_text("\n".join(lines), encoding="utf-8")
    (folder / "turned_wrong.html").write_text(page, encoding="utf-8")


def _examples(job: Path, limit: int) -> list[tuple[dict[str, Any], str | None]]:
    """Rows of a job's turned_wrong.parquet on the suite, the last stages and unlike formats first, with pictures."""
    import pyarrow.parquet as pq

    results = json.loads((job / "results.json").read_text(encoding="utf-8"))
    suite, stages = (
        set(results["config"]["suite"]["tasks"]),
        {s["index"]: s["task"] for s in results["stages"]},
    )
    rows = [row for row in pq.read_table(job / "turned_wrong.parquet").to_pylist() if row["task"] in suite]
    by_place: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["said"] == r["kind_before"], r["sample_id"])):
        by_place.setdefault((row["stage"], row["said"]), []).append({**row, "taught": stages[row["stage"]]})
    chosen: list[dict[str, Any]] = []
    while by_place and len(chosen) < limit:
        for place in sorted(by_place):
            chosen.append(by_place[place].pop(0))
            if not by_place[place]:
                del by_place[place]
    return [(row, _picture(job, row)) for row in chosen[:limit]]


def _picture(job: Path, row: Mapping[str, Any]) -> str | None:
    """The sample's first image as base64 PNG, None where its data is not here any more."""
    import base64
    import io

    import yaml

    from lmm_forget.tasks.loading import build_task

    try:
        config = yaml.safe_load((job / "job.yaml").read_text(encoding="utf-8"))
        samples = build_task(config["tasks"][row["task"]]).samples("test")
        index = row["sample_id"].rpartition("-")[2]
        likely = [int(index)] if index.isdigit() and int(index) < len(samples) else []
        for i in (*likely, *range(len(samples))):
            sample = samples[i]
            if sample.id == row["sample_id"]:
                buffer = io.BytesIO()
                image = sample.images[0].convert("RGB")
                image.thumbnail((192, 192))
                image.save(buffer, format="PNG")
                return base64.b64encode(buffer.getvalue()).decode()
    except (OSError, LmmForgetError, IndexError):
        return None
    return None


def _job_folder(folder: Path, job: str) -> Path:
    return folder / job if (folder / job).is_dir() else folder


def draw(found: Mapping[str, Any], path: Path) -> None:
    """The scatter plot: a panel per set of prompts and mode, the number mass (or the first figure) against held-out."""
    from matplotlib.figure import Figure

    panels = [
        (shift, name)
        for shift in found["shifts"]
        for name in ("number_mass", "kl")
        if "heldout" in shift["figures"].get(name, {})
    ]
    if not panels:
        return
    figure = Figure(figsize=(3.6 * len(panels), 3.2), layout="constrained")
    recipes = list(dict.fromkeys(point["recipe"] for point in found["points"]))
    for k, (shift, name) in enumerate(panels, start=1):
        axis = figure.add_subplot(1, len(panels), k)
        key = f"{shift['prompts']}/{shift['mode']}"
        for recipe in recipes:
            mine = [
                (p["shift"][key][name], p["heldout"])
                for p in found["points"]
                if p["recipe"] == recipe and p["heldout"] is not None and name in p["shift"].get(key, {})
            ]
            if mine:
                axis.scatter([x for x, _ in mine], [y for _, y in mine], s=16, label=recipe)
        rho = shift["figures"][name]["heldout"]["spearman"]["value"]
        axis.set_title(f"{key}\nSpearman {rho:+.2f}" if rho is not None else key, fontsize=8)
        axis.set_xlabel(f"rise of {name}" if name.endswith("mass") else name)
        axis.set_ylabel("held-out change (points)")
    figure.axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def _show(found: Mapping[str, Any], turned: Sequence[Mapping[str, Any]]) -> None:
    """Print the short form; readable at 80 columns."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for shift in found["shifts"]:
        table = Table(
            title=f"shift on {shift['prompts']} ({shift['mode']}) and held-out change", title_justify="left"
        )
        for name in ("figure", "Pearson", "Spearman", "models", "went back"):
            table.add_column(name, justify="left" if name == "figure" else "right")
        for name, against in shift["figures"].items():
            if "heldout" not in against:
                continue
            entry, back = against["heldout"], shift["recovery"].get(name)
            went = f"{back['shift_went_back']} of {back['recovered']}" if back else ""
            table.add_row(name, _r(entry["pearson"]), _r(entry["spearman"]), str(entry["n"]), went)
        console.print(table)
    console.print(
        f"Intervals resample the {found['jobs']} jobs (none below 3). went back: stages at which the held-out mean "
        "rose again and the shift shrank as well."
    )
    layers = Table(
        title="who writes the change in logits (share, final norm folded in)", title_justify="left"
    )
    for name in ("job", "after", "early attn", "late attn", "early MLP", "late MLP"):
        layers.add_column(name)
    for entry in found["layers"]:
        parts = entry["folded"]
        order = ("early_attention", "late_attention", "early_mlp", "late_mlp")
        layers.add_row(
            str(entry["job"]), entry["task"], *(f"{100 * (parts[name] or 0):.0f} %" for name in order)
        )
    if found["layers"]:
        console.print(layers)
    wrong = Table(
        title="held-out questions that turned wrong, and formats said instead", title_justify="left"
    )
    for name in ("job", "after", "wrong", "number", "letter", "yes_no", "clock", "other"):
        wrong.add_column(name)
    for row in turned:
        kinds = ("number", "letter", "yes_no", "clock", "other")
        said = [str(row["said_instead"][kind]) for kind in kinds]
        wrong.add_row(str(row["job"]), row["task"], str(row["turned_wrong"]), *said)
    console.print(wrong)


def _r(entry: Mapping[str, float | None]) -> str:
    if entry["value"] is None:
        return "n/a"
    if entry["low"] is None:
        return f"{entry['value']:+.2f}"
    return f"{entry['value']:+.2f} ({entry['low']:+.2f}/{entry['high']:+.2f})"


if __name__ == "__main__":
    sys.exit(main())
