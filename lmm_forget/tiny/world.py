"""The index of the tiny world: every renderer by name, and how a (task, split, number) becomes a picture."""

from __future__ import annotations

import random
from types import MappingProxyType

from lmm_forget.tiny import benchmarks, captions, skills
from lmm_forget.tiny.drawn import Drawn, Renderer

# Raised when any renderer changes, so that no record of the old world is taken for one of the new.
WORLD_VERSION = 2

SKILLS = MappingProxyType(
    {
        "cub200": skills.birds,
        "pixmocount": skills.counting,
        "pathvqa": skills.pathology,
        "textvqa": skills.reading,
        "timeclock": skills.clocks,
    }
)
BENCHMARKS = MappingProxyType(
    {
        "ai2d": benchmarks.diagram,
        "chartqa": benchmarks.chart,
        "docvqa": benchmarks.document,
        "infovqa": benchmarks.infographic,
        "realworldqa": benchmarks.realworld,
        "seedbench": benchmarks.seed,
        "scienceqa": benchmarks.science,
        "mmstar": benchmarks.star,
    }
)
CAPTIONS = MappingProxyType(
    {
        "caption": captions.caption,
        "scene_by_place": captions.scene_by_place,
        "scene_by_thing": captions.scene_by_thing,
        "cells": captions.cells,
        "bird_parts": captions.bird_parts,
        "hands": captions.hands,
        "nuclei": captions.nuclei,
        "bars": captions.bars,
        "letters": captions.letters,
        "icon_rows": captions.icon_rows,
        "arrow": captions.arrow,
        "two_things": captions.two_things,
        "single_thing": captions.single_thing,
    }
)
DRILLS = MappingProxyType({"salad": captions.salad})
RENDERERS: MappingProxyType[str, Renderer] = MappingProxyType({**SKILLS, **BENCHMARKS, **CAPTIONS, **DRILLS})

OPTION = "\nAnswer with the option's letter."
WORD = "\nAnswer with a single word."
# What is added to a question when it is asked and when it is taught.
INSTRUCTIONS = MappingProxyType(
    {
        "cub200": OPTION,
        "pixmocount": "\nAnswer with an integer.",
        "pathvqa": "\nAnswer yes or no, or name the finding.",
        "textvqa": WORD,
        "timeclock": "\nAnswer in HH:MM format.",
        "ai2d": "\nAnswer with the label's letter.",
        "chartqa": WORD,
        "docvqa": WORD,
        "infovqa": WORD,
        "realworldqa": WORD,
        "seedbench": OPTION,
        "scienceqa": OPTION,
        "mmstar": OPTION,
    }
)

# The score of the best guess that never looks at the picture, in points; the base must stand well above it.
CHANCE = MappingProxyType(
    {
        "ai2d": 25.0,
        "chartqa": 100 / 9,
        "docvqa": 1.0,
        "infovqa": 100 / 9,
        "realworldqa": (100 / 3 + (100 / 8 + 50) / 2) / 2,
        "seedbench": (100 / 6 + 100 / 8) / 2,
        "scienceqa": 100 / 3,
        "mmstar": (100 / 6 + 100 / 8 + 25) / 3,
        "cub200": 12.5,
        "pixmocount": 100 / 6,
        "pathvqa": (50 + 25) / 2,
        "textvqa": 0.1,
        "timeclock": 100 / 144,
    }
)


def draw(name: str, split: str, number: int) -> Drawn:
    """Picture `number` of a renderer's split; splits never share random numbers. KeyError for an unknown name."""
    # The seed keeps its text when the version rises: renderers that did not change draw the same pictures.
    return RENDERERS[name](random.Random(f"tiny world 1/{name}/{split}/{number}"))
