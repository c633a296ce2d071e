"""The question that a sweep asks, and its answer in a sentence or two, from the figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmm_forget.report.rows import points
from lmm_forget.report.settings import Setting


def question(settings: Sequence[Setting]) -> str:
    """What this sweep can answer."""
    skills = max((len(setting.stages) for setting in settings), default=0)
    taught = f"{skills} skills one after another" if skills > 1 else "a new skill"
    recipes = {setting.first.label for setting in settings}
    if len(settings) == 1:
        return f"What did {settings[0].name} learn when taught {taught}, and what did the model forget?"
    if len(recipes) == 1:
        return f"At which learning rate does {settings[0].first.label} learn {taught} without forgetting?"
    return f"Which recipe learns {taught} without forgetting what the model knew?"


def answer(settings: Sequence[Setting]) -> str:
    """The answer, with the numbers it rests on; careful where an interval is."""
    known = [s for s in settings if s.figures["learning"]["value"] is not None]
    if not known:
        return "No job has finished yet."
    if all(s.figures["final"]["value"] is None for s in known):
        best = max(known, key=_learned)
        return f"{best.name} learned {_told(best.figures['learning'])}; nothing was held out, so what it cost is unknown."
    known = [s for s in known if s.figures["final"]["value"] is not None]
    learned = [s for s in known if _above_zero(s.figures["learning"])]
    if not learned:
        named = "It" if len(known) == 1 else "No recipe"
        best = max(known, key=_learned)
        return f"{named} did not learn more than chance allows ({best.name}: {_told(best.figures['learning'])})."
    kept = [s for s in learned if not _below_zero(s.figures["final"])]
    if kept:
        best = max(kept, key=_learned)
        return f"{best.name}: it learned {_told(best.figures['learning'])} and {_held(best.figures['final'])}." + (
            _others(best, learned)
        )
    least, most = max(learned, key=_final), max(learned, key=_learned)
    if len(learned) == 1:
        return f"{least.name} {_both(least)}."
    if least is most:
        return f"None without forgetting; best on both counts is {least.name}, which {_both(least)}."
    return f"None without forgetting. {least.name} forgot least: it {_both(least)}. {most.name} learned most: it {_both(most)}."


def front(settings: Sequence[Setting]) -> list[Setting]:
    """The settings that no other beats in both learning and held-out forgetting, by learning."""
    known = [
        s
        for s in settings
        if s.figures["learning"]["value"] is not None and s.figures["final"]["value"] is not None
    ]
    best = [
        s
        for s in known
        if not any(
            _learned(o) >= _learned(s) and _final(o) >= _final(s) and (_learned(o), _final(o)) != (_learned(s), _final(s))
            for o in known
        )
    ]
    return sorted(best, key=_learned)


def _both(setting: Setting) -> str:
    return f"learned {_told(setting.figures['learning'])} and {_held(setting.figures['final'])}"


def _held(final: Mapping[str, Any]) -> str:
    moved = _told(final)
    if final["low"] is None or not (final["low"] > 0 or final["high"] < 0):
        return f"its held-out mean moved by {moved}, which is within chance"
    return f"its held-out mean {'fell' if final['value'] < 0 else 'rose'} by {moved}"


def _others(best: Setting, learned: Sequence[Setting]) -> str:
    more = [s for s in learned if _learned(s) > _learned(best)]
    if not more:
        return ""
    named = max(more, key=_learned)
    return f" {named.name} learned more ({_told(named.figures['learning'])}), but {_held(named.figures['final'])}."


def _told(estimate: Mapping[str, Any]) -> str:
    value = f"{points(estimate['value'])} points"
    if estimate["low"] is None:
        return value
    return f"{value} [{points(estimate['low'])} to {points(estimate['high'])}]"


def _above_zero(estimate: Mapping[str, Any]) -> bool:
    return float(estimate["value"] if estimate["low"] is None else estimate["low"]) > 0


def _below_zero(estimate: Mapping[str, Any]) -> bool:
    return float(estimate["value"] if estimate["high"] is None else estimate["high"]) < 0


def _learned(setting: Setting) -> float:
    return float(setting.figures["learning"]["value"])


def _final(setting: Setting) -> float:
    return float(setting.figures["final"]["value"])
