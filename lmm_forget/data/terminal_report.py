"""Print the reports of the data command; readable at 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_data_report(report: Mapping[str, Any]) -> None:
    """Print the report of `inspection.build_data_report`."""
    console = Console(highlight=False)
    splits: Mapping[str, Any] = report["splits"]
    source = "; ".join(dict.fromkeys(report["source"].values()))
    table = Table(
        title=f"{report['task']} ({report['role']}){f' from {source}' if source else ''}",
        title_justify="left",
    )
    table.add_column("")
    for split in splits:
        table.add_column(split, justify="right")
    lines = {
        "samples": lambda s: f"{s['samples']:,}" + ("" if s["read"] == s["samples"] else f" ({s['read']:,} read)"),
        "images": lambda s: f"{s['images']:,}",
        "unusable": lambda s: str(s["unusable"]["count"]),
        "own answer scores 0": lambda s: str(s["unscored"]["count"]),
        "answer, words": lambda s: _format_spread(s.get("answers", {}).get("words")),
        "question, characters": lambda s: _format_spread(s.get("question_characters")),
        "image, width": lambda s: _format_spread(s.get("pixels", {}).get("width")),
        "image, height": lambda s: _format_spread(s.get("pixels", {}).get("height")),
        "options": lambda s: ", ".join(f"{n}: {count}" for n, count in s.get("choices", {}).items()),
        "tokens": lambda s: _format_spread(s.get("tokens")),
        "longer than the context": lambda s: str(s["too_long"]["count"]) if "too_long" in s else "",
    }
    for name, cell in lines.items():
        cells = [cell(split) for split in splits.values()]
        if any(cells):
            table.add_row(name, *cells)
    console.print(table)
    for split, section in splits.items():
        answers = section.get("answers")
        if answers:
            formats = ", ".join(f"{name} {count}" for name, count in answers["formats"].items())
            common = ", ".join(f"{text!r} {count}" for text, count in answers["most_common"])
            console.print(Text(f"{split} answers: {formats}; {answers['different']} different, most often {common}"))
        for kind in ("unusable", "unscored", "too_long"):
            for line in section.get(kind, {}).get("first", []):
                console.print(Text(f"{split}, {kind.replace('_', ' ')}: {line}"), style="red")
    for pair, section in report["duplicates"].items():
        if section["same_pixels"] or section["look_alike"]:
            first = ", ".join(" = ".join(ids) for ids in section["first"][:3])
            console.print(
                Text(
                    f"images in both {pair}: {section['same_pixels']} the same, {section['look_alike']} look alike "
                    f"({first})"
                ),
                style="red" if section["same_pixels"] else "",
            )
    for split, reason in report["absent"].items():
        is_problem = split == "train" and report["unreadable_train_path"]
        console.print(Text(f"no {split}: {reason}"), style="red" if is_problem else "dim")
    if report.get("sheet"):
        console.print(Text(f"contact sheet: {report['sheet']}"))


def print_prepare_report(report: Mapping[str, Any], output_dir: str, task_name: str) -> None:
    """Print the report of `pixmo_preparation.prepare_task_images`, and how to configure the task."""
    console = Console(highlight=False)
    usable = ", ".join(f"{split} {count:,}" for split, count in report["usable_rows"].items())
    console.print(
        Text(
            f"{report['images']:,} images: {report['downloaded']:,} downloaded, {report['already_there']:,} were "
            f"there, {len(report['gone']):,} gone"
        )
    )
    for reason, count in report["reasons"].items():
        console.print(Text(f"  {count:>6,}  {reason}"))
    console.print(Text(f"{report['rows']:,} rows: usable {usable or 'none'}; {report['lost_rows']:,} lost"))
    if report["may_come_back"]:
        console.print(Text(f"{report['may_come_back']:,} failed temporarily; the same command tries them again"))
    console.print(Text(f"use it: +tasks.{task_name}.train_path={output_dir}"))


def _format_spread(spread: Mapping[str, float] | None) -> str:
    return "" if not spread else f"{spread['min']:g} … {spread['median']:g} … {spread['max']:g}"
