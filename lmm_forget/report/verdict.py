"""The question that a sweep asks, and its answer in a sentence or two, from the figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmm_forget.report.differences import Difference
from lmm_forget.report.rows import points
from lmm_forget.report.settings import Setting, by_model


def question(settings: Sequence[Setting]) -> str:
    """What this sweep can answer."""
    skills = max((len(setting.stages) for setting in settings), default=0)
    taught = f"{skills} skills one after another" if skills > 1 else "a new skill"
    recipes = {setting.first.within for setting in settings}
    if len(settings) == 1:
        return f"What did {settings[0].name} learn when taught {taught}, and what did the model forget?"
    if settings and all(len(group) == 1 for group in by_model(settings)):
        return f"What did each model learn when taught {taught}, and what did it forget?"
    if len(recipes) == 1:
        return f"At which learning rate does {settings[0].first.within} learn {taught} without forgetting?"
    knew = "what the model knew" if len(by_model(settings)) == 1 else "what each model knew"
    return f"Which recipe learns {taught} without forgetting {knew}?"


def answer(settings: Sequence[Setting], compared: Sequence[Difference] = ()) -> str:
    """The answer in a line or two, one such for each model; `compared` are the differences to what forgot least.

    A setting counts as having learned or forgotten where its interval excludes zero, or that of each of its jobs does
    on the same side (two seeds give no interval worth the name); and as having learned more than another where the
    interval of their difference excludes zero.
    """
    groups = by_model(settings)
    if len(groups) < 2:
        return _answer(settings, compared)
    lines = []
    for group in groups:
        short = {setting.name: setting.within for setting in group}
        inside = [
            replace(each, name=short[each.name], against=short[each.against])
            for each in compared
            if each.name in short and each.against in short
        ]
        told = _answer([replace(setting, name=setting.within) for setting in group], inside)
        lines.append(f"{group[0].first.model}: {told}")
    return "\n".join(lines)


def _answer(settings: Sequence[Setting], compared: Sequence[Difference]) -> str:
    known = [s for s in settings if s.figures["learning"]["value"] is not None]
    if not known:
        return "No job has finished yet."
    held = [s for s in known if s.figures["final"]["value"] is not None]
    unknown = "" if held else "; nothing was held out, so what it cost is unknown"
    known = held or known
    learned = [s for s in known if _beyond(s, "learning", 1)]
    if not learned:
        return _nothing_learned(known, alone=len(settings) == 1, more=unknown)
    if not held:
        best = max(learned, key=_learned)
        return f"{best.name} learned {_points(best, 'learning')}{unknown}."
    if len(settings) == 1:
        (only,) = known
        return f"It learned {_points(only, 'learning')} and {_cost(only)}."
    kept = [s for s in learned if not _beyond(s, "final", -1)]
    if kept:
        best = max(kept, key=_learned)
        told = f"{best.name}: it learned {_points(best, 'learning')} and {_cost(best)}."
        more = [s for s in learned if _learned(s) > _learned(best)]
        if more:
            most = max(more, key=_learned)
            told += f" {most.name} learned {_points(most, 'learning')}, but {_cost(most)}."
        return told
    return _all_forgot(known, learned, compared)


def _nothing_learned(known: Sequence[Setting], *, alone: bool, more: str) -> str:
    """The answer where no setting learned more than chance allows; `alone`: the sweep has a single one."""
    best = max(known, key=_learned)
    if all(_beyond(s, "learning", -1) for s in known):
        told = "It" if alone else "None: all"
        return f"{told} got worse at what was taught (best: {best.name}, {_points(best, 'learning')}){more}."
    if alone:
        return f"It learned no more than chance allows ({best.name}: {_points(best, 'learning')}){more}."
    return f"None learned more than chance allows (best: {best.name}, {_points(best, 'learning')}){more}."


def _all_forgot(known: Sequence[Setting], learned: Sequence[Setting], compared: Sequence[Difference]) -> str:
    """The answer where every setting that `learned` forgot; the other `known` ones did not learn beyond chance."""
    least, most = max(learned, key=_final), max(learned, key=_learned)
    cost = f"{_points(least, 'learning')} and {_cost(least)}"
    if len(learned) == 1 < len(known):
        return f"None. {least.name} alone learned more than chance allows: it learned {cost}."
    among = "" if len(learned) == len(known) else "Of those that learned, "
    told = f"None. {among}{least.name} forgot least: it learned {cost}."
    if len(learned) == 1:  # of the others it is not known what they cost
        return told
    if least is most:
        return f"{told} No other learned more."
    gap = next((d.learning for d in compared if (d.name, d.against) == (most.name, least.name)), None)
    if gap is not None and gap["low"] is not None and gap["low"] <= 0:
        return f"{told} No other learned more beyond chance."
    return f"{told} {most.name} learned most, {_points(most, 'learning')}, and {_cost(most)}."


def front(settings: Sequence[Setting]) -> list[Setting]:
    """The settings of one model that no other beats in both learning and held-out forgetting, by learning."""
    known = [
        s
        for s in settings
        if s.figures["learning"]["value"] is not None and s.figures["final"]["value"] is not None
    ]
    best = [
        s
        for s in known
        if not any(
            _learned(o) >= _learned(s)
            and _final(o) >= _final(s)
            and (_learned(o), _final(o)) != (_learned(s), _final(s))
            for o in known
        )
    ]
    return sorted(best, key=_learned)


def _cost(setting: Setting) -> str:
    final = setting.figures["final"]
    if not (_beyond(setting, "final", 1) or _beyond(setting, "final", -1)):
        return f"kept its held-out mean ({points(final['value'])}, within chance)"
    base = setting.heldout_base
    of = "" if base is None or final["value"] > 0 else f" of {base:.1f}"
    verb = "lost" if final["value"] < 0 else "gained"
    return f"{verb} {abs(final['value']):.1f}{of} points on the held-out benchmarks"


def _points(setting: Setting, figure: str) -> str:
    return f"{points(setting.figures[figure]['value'])} points"


def _beyond(setting: Setting, figure: str, side: int) -> bool:
    """Whether a figure lies beyond zero on that side (1 or -1); see `answer`."""

    def clear(estimate: Mapping[str, Any]) -> bool:
        end = estimate["low"] if side > 0 else estimate["high"]
        value = estimate["value"] if end is None else end
        return value is not None and side * float(value) > 0

    jobs = [row.figures[figure] for row in setting.rows]
    return clear(setting.figures[figure]) or all(clear(estimate) for estimate in jobs)


def _learned(setting: Setting) -> float:
    return float(setting.figures["learning"]["value"])


def _final(setting: Setting) -> float:
    return float(setting.figures["final"]["value"])
